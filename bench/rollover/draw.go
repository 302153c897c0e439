package main

// This file draws the picture. It has one row per peer and one column per run, all
// with the same axes.

import (
	"bytes"
	"fmt"
	"image/color"
	"io"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

const (
	width     = 820 * vg.Inch / 96 // 820 pixels
	rowHeight = 132 * vg.Inch / 96
	heading   = 20
	slots     = 480 // of a panel; each is drawn as one line

	lowest, highest = 1e-5, 10 // seconds, of the latency axis
)

var (
	pale   = color.RGBA{R: 140, G: 175, B: 215, A: 255}
	blue   = color.RGBA{R: 20, G: 75, B: 160, A: 255}
	red    = color.RGBA{R: 210, G: 30, B: 30, A: 255}
	shade  = color.RGBA{R: 250, G: 228, B: 200, A: 255}
	dotted = color.RGBA{R: 120, G: 120, B: 120, A: 255}
)

// slowest draws the slowest call of each slot as a line from the bottom of the
// panel to the call's latency. The line is dark if the call stalled, and red if it
// failed. A call can fail at once, so there is also a red mark at the top.
type slowest struct {
	title                 string
	good, stalled, failed []float64 // seconds, by slot; 0: none
	slot                  float64   // seconds
	down                  [2]float64
}

func newSlowest(l *lane) *slowest {
	sum := summarize(l.calls)
	s := &slowest{
		title: fmt.Sprintf("%s: %d calls over 10 ms, %d failed", titles[l.peer.Name], sum.stalled, sum.failed),
		good:  make([]float64, slots), stalled: make([]float64, slots), failed: make([]float64, slots),
		slot: l.length.Seconds() / slots,
	}
	if l.outage {
		s.down = [2]float64{l.downFrom.Seconds(), l.downTo.Seconds()}
	}
	for _, c := range l.calls {
		i := int(c.at.Seconds() / s.slot)
		if i < 0 || i >= slots {
			continue
		}
		in := s.good
		switch {
		case c.failed:
			in = s.failed
		case c.took > stall:
			in = s.stalled
		}
		in[i] = max(in[i], c.took.Seconds())
	}
	return s
}

// Plot implements plot.Plotter.
func (s *slowest) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	bottom := y(lowest)
	c.FillText(text(p, 9), vg.Point{X: c.Min.X, Y: c.Max.Y + 3}, s.title)
	if s.down[1] > 0 {
		c.FillPolygon(shade, []vg.Point{
			{X: x(s.down[0]), Y: bottom}, {X: x(s.down[1]), Y: bottom}, {X: x(s.down[1]), Y: y(highest)}, {X: x(s.down[0]), Y: y(highest)},
		})
	}
	c.SetLineDash([]vg.Length{2, 2}, 0)
	stroke(c, dotted, 0.5, []segment{{vg.Point{X: c.Min.X, Y: y(stall.Seconds())}, vg.Point{X: c.Max.X, Y: y(stall.Seconds())}}})
	c.SetLineDash(nil, 0)
	for _, layer := range []struct {
		latency []float64
		color   color.Color
		width   vg.Length
	}{{s.good, pale, 0.7}, {s.stalled, blue, 1.5}, {s.failed, red, 1.5}} {
		var lines []segment
		for i, latency := range layer.latency {
			if latency > 0 {
				at := x((float64(i) + 0.5) * s.slot)
				lines = append(lines, segment{vg.Point{X: at, Y: bottom}, vg.Point{X: at, Y: y(min(max(latency, lowest), highest))}})
			}
		}
		stroke(c, layer.color, layer.width, lines)
	}
	var marks []segment
	for i, latency := range s.failed {
		if latency > 0 {
			at := x((float64(i) + 0.5) * s.slot)
			marks = append(marks, segment{vg.Point{X: at, Y: y(highest / 3)}, vg.Point{X: at, Y: y(highest)}})
		}
	}
	stroke(c, red, 1.5, marks)
}

type segment [2]vg.Point

// stroke draws all segments as one path, which keeps the file small.
func stroke(c draw.Canvas, in color.Color, width vg.Length, lines []segment) {
	if len(lines) == 0 {
		return
	}
	var path vg.Path
	for _, line := range lines {
		path.Move(line[0])
		path.Line(line[1])
	}
	c.SetColor(in)
	c.SetLineWidth(width)
	c.Stroke(path)
}

// panel returns the panel of a lane.
func panel(l *lane, bottom, left bool) *plot.Plot {
	p := plot.New()
	p.X.Min, p.X.Max = 0, l.length.Seconds()
	p.Y.Min, p.Y.Max = lowest, highest
	p.Y.Scale = plot.LogScale{}
	p.Y.Tick.Marker = plot.ConstantTicks{
		{Value: 1e-5, Label: "10 µs"}, {Value: 1e-4}, {Value: 1e-3}, {Value: 1e-2, Label: "10 ms"}, {Value: 1e-1},
		{Value: 1, Label: "1 s"}, {Value: 10},
	}
	var seconds plot.ConstantTicks
	for s := range int(l.length.Seconds()) + 1 {
		tick := plot.Tick{Value: float64(s)}
		if s%(1+int(l.length.Seconds()/8)) == 0 {
			tick.Label = strconv.Itoa(s)
		}
		seconds = append(seconds, tick)
	}
	p.X.Tick.Marker = seconds
	p.X.Padding, p.Y.Padding = 0, 0
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Tick.Label.Font = sans(8)
		axis.Label.TextStyle.Font = sans(8.5)
		axis.LineStyle.Width = 0.5
		axis.Tick.LineStyle.Width = 0.5
	}
	if bottom {
		p.X.Label.Text = "seconds since the first token"
	}
	if left {
		p.Y.Label.Text = "slowest call"
	}
	p.Add(newSlowest(l))
	return p
}

// text returns p's text style, aligned to the left.
func text(p *plot.Plot, size vg.Length) draw.TextStyle {
	style := p.Title.TextStyle
	style.Font, style.XAlign, style.YAlign = sans(size), draw.XLeft, draw.YBottom
	return style
}

func sans(size vg.Length) font.Font {
	return font.Font{Typeface: "Liberation", Variant: "Sans", Size: size}
}

// paint writes the picture as SVG.
func paint(out io.Writer, all *lanes) error {
	picture := vgsvg.New(width, heading+rowHeight*vg.Length(len(all.outage)))
	compose(draw.New(picture), all)
	var svg bytes.Buffer
	if _, err := picture.WriteTo(&svg); err != nil {
		return err
	}
	// Without the font, a browser would use one with serifs.
	_, err := out.Write(bytes.ReplaceAll(svg.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,sans-serif;")))
	return err
}

// compose draws the panels on a white background, so that they are readable on a
// dark page.
func compose(canvas draw.Canvas, all *lanes) {
	canvas.SetColor(color.White)
	canvas.Fill(canvas.Rectangle.Path())
	var panels [][]*plot.Plot
	for i := range all.outage {
		bottom := i == len(all.outage)-1
		panels = append(panels, []*plot.Plot{panel(all.steady[i], bottom, true), panel(all.outage[i], bottom, false)})
	}
	tiles := draw.Tiles{Rows: len(panels), Cols: 2, PadX: 14, PadY: 13, PadTop: heading + 14, PadBottom: 4, PadLeft: 4, PadRight: 10}
	for i, row := range plot.Align(panels, tiles, canvas) {
		for j, at := range row {
			panels[i][j].Draw(at)
			if i == 0 {
				title := []string{"The endpoint is up", "The endpoint is down in the shaded time"}[j]
				data := panels[i][j].DataCanvas(at)
				canvas.FillText(text(panels[i][j], 11), vg.Point{X: data.Min.X, Y: canvas.Max.Y - heading}, title)
			}
		}
	}
}
