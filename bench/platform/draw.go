package platform

// This file draws the picture: the accounts served over time, one panel for each
// limit of the server, and how long pages wait.

import (
	"bytes"
	"fmt"
	"image/color"
	"io"
	"slices"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

const (
	width  = 1220 * vg.Inch / 96 // 1220 pixels
	height = 330 * vg.Inch / 96
	steps  = 240 // of a line
)

var (
	colors = []color.Color{ // of the subjects
		color.RGBA{R: 20, G: 75, B: 160, A: 255},
		color.RGBA{R: 120, G: 165, B: 215, A: 255},
		color.RGBA{R: 225, G: 140, B: 30, A: 255},
		color.RGBA{R: 210, G: 30, B: 30, A: 255},
	}
	grey = color.RGBA{R: 120, G: 120, B: 120, A: 255}
)

// servedBy returns how many accounts had a token at each step up to end, in seconds.
func (c *crowd) servedBy(end float64) plotter.XYs {
	var line plotter.XYs
	n := 0
	for step := range steps + 1 {
		x := end * float64(step) / steps
		for n < len(c.served) && c.served[n] <= time.Duration(x*float64(time.Second)) {
			n++
		}
		line = append(line, plotter.XY{X: x, Y: float64(n)})
	}
	return line
}

// newPlot returns an empty panel.
func newPlot(title string, x, y float64) *plot.Plot {
	p := plot.New()
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 0, x, 0, y
	p.X.Padding, p.Y.Padding = 0, 0
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Tick.Label.Font = sans(8)
		axis.Label.TextStyle.Font = sans(8.5)
		axis.LineStyle.Width = 0.5
		axis.Tick.LineStyle.Width = 0.5
	}
	p.Title.Text = title
	p.Title.TextStyle.Font = sans(11)
	p.Title.Padding = 6
	p.Legend.TextStyle.Font = sans(7.5)
	p.Legend.ThumbnailWidth = 12
	p.Legend.Padding = 1.5
	return p
}

// panel returns the panel that shows how many accounts have been served.
func (r *results) panel(half int) (*plot.Plot, error) {
	end := 1.3 * r.floor(half)
	p := newPlot(fmt.Sprintf("The server accepts %d per second", r.takes(half)), end, float64(r.accounts)*1.02)
	p.X.Label.Text = "seconds since all accounts asked"
	if half == 0 {
		p.Y.Label.Text = "accounts served"
	}
	floor, err := plotter.NewLine(plotter.XYs{{X: 0, Y: 0}, {X: r.floor(half), Y: float64(r.accounts)}})
	if err != nil {
		return nil, err
	}
	floor.Color, floor.Width, floor.Dashes = grey, 0.7, []vg.Length{2, 2}
	p.Add(floor)
	p.Legend.Top, p.Legend.Left, p.Legend.XOffs, p.Legend.YOffs = false, false, -4, 20
	for i := len(subjects) - 1; i >= 0; i-- { // the first one is on top
		c := r.crowds[half][i]
		line, err := plotter.NewLine(c.servedBy(end))
		if err != nil {
			return nil, err
		}
		line.Color, line.Width = colors[i], 1.6
		p.Add(line)
	}
	for i, s := range subjects {
		c := r.crowds[half][i]
		p.Legend.Add(fmt.Sprintf("%s: %d failed, %d refused", s.name, c.failed, c.refused), thumbnail(i))
	}
	p.Legend.Add("as fast as the server accepts them", floor)
	return p, nil
}

func thumbnail(i int) plot.Thumbnailer {
	return &plotter.Line{LineStyle: draw.LineStyle{Color: colors[i], Width: 1.6}}
}

// pagesPanel returns the panel that shows how long pages wait while accounts wait. A
// page that fails is a dot.
func (r *results) pagesPanel() (*plot.Plot, error) {
	most := 1.0
	for _, met := range r.people {
		most = max(most, slices.Max(met.waited).Seconds())
	}
	p := newPlot(fmt.Sprintf("One page per second while %d accounts wait", r.waiting), float64(r.pages()), most*1.45)
	p.Y.Min = -most / 50 // so that a line at 0 is visible
	p.X.Label.Text = "seconds since the accounts asked"
	p.Y.Label.Text = "seconds until the page has a token"
	p.Legend.Top, p.Legend.Left, p.Legend.XOffs, p.Legend.YOffs = true, false, -4, -4
	for i := len(subjects) - 1; i >= 0; i-- {
		var served, failed plotter.XYs
		for second, waited := range r.people[i].waited {
			at := plotter.XY{X: float64(second), Y: waited.Seconds()}
			if r.people[i].failed[second] {
				failed = append(failed, at)
			} else {
				served = append(served, at)
			}
		}
		if len(served) > 0 {
			line, err := plotter.NewLine(served)
			if err != nil {
				return nil, err
			}
			line.Color, line.Width = colors[i], 1.6
			p.Add(line)
		}
		if len(failed) > 0 {
			dots, err := plotter.NewScatter(failed)
			if err != nil {
				return nil, err
			}
			dots.Color, dots.Radius, dots.Shape = colors[i], 1.2, draw.CircleGlyph{}
			p.Add(dots)
		}
	}
	for i, s := range subjects {
		text := fmt.Sprintf("%s: %s at most", s.name, r.people[i].longest())
		if failed := r.people[i].accounts.Load(); failed > 0 {
			text += fmt.Sprintf("; %d accounts failed", failed)
		}
		p.Legend.Add(text, thumbnail(i))
	}
	return p, nil
}

func sans(size vg.Length) font.Font {
	return font.Font{Typeface: "Liberation", Variant: "Sans", Size: size}
}

// paint writes the picture as SVG, on a white background, so that it is readable on
// a dark page.
func (r *results) paint(out io.Writer) error {
	picture := vgsvg.New(width, height)
	canvas := draw.New(picture)
	canvas.SetColor(color.White)
	canvas.Fill(canvas.Rectangle.Path())
	var row []*plot.Plot
	for half := range r.crowds {
		p, err := r.panel(half)
		if err != nil {
			return err
		}
		row = append(row, p)
	}
	pages, err := r.pagesPanel()
	if err != nil {
		return err
	}
	row = append(row, pages)
	tiles := draw.Tiles{Rows: 1, Cols: 3, PadX: 18, PadTop: 6, PadBottom: 4, PadLeft: 4, PadRight: 10}
	for i, at := range plot.Align([][]*plot.Plot{row}, tiles, canvas)[0] {
		row[i].Draw(at)
	}
	var svg bytes.Buffer
	if _, err := picture.WriteTo(&svg); err != nil {
		return err
	}
	// Without the font, a browser would use one with serifs.
	_, err = out.Write(bytes.ReplaceAll(svg.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,sans-serif;")))
	return err
}
