package fleet

// This file writes the tables and draws the picture.

import (
	"bytes"
	"fmt"
	"image/color"
	"io"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// results has the crowds by load, size of the fleet, and subject.
type results struct {
	plan
	crowds [][][]*crowd
}

// cell returns a cell of a table: the time as a multiple of the floor, and the number
// of 429s in brackets.
func (r *results) cell(c *crowd) string {
	if missing := r.accounts - len(c.served); missing > 0 {
		return fmt.Sprintf("%d without a token after %v (%d)", missing, r.give, c.refused)
	}
	return fmt.Sprintf("%.2f (%d)", c.served[len(c.served)-1].Seconds()/r.floor(), c.refused)
}

func (r *results) write(out io.Writer) {
	fmt.Fprintf(out, "%d accounts want a token at once, and the server accepts %d requests a second. The figures are the time as a multiple of the shortest possible, %.0f s, and the number of 429s in brackets.\n",
		r.accounts, r.perSecond, r.floor())
	for i, l := range loads {
		fmt.Fprintf(out, "\n%s:\n\n| replicas |", l.title)
		for _, s := range subjects {
			fmt.Fprintf(out, " %s |", s.title)
		}
		fmt.Fprint(out, "\n|--:|--:|--:|--:|\n")
		for j, replicas := range r.replicas {
			fmt.Fprintf(out, "| %d |", replicas)
			for k := range subjects {
				fmt.Fprintf(out, " %s |", r.cell(r.crowds[i][j][k]))
			}
			fmt.Fprintln(out)
		}
	}
}

const (
	width  = 820 * vg.Inch / 96 // 820 pixels
	height = 360 * vg.Inch / 96
	steps  = 320 // points of a line, less one
)

var (
	colors = []color.Color{ // for each subject
		color.RGBA{R: 20, G: 75, B: 160, A: 255},
		color.RGBA{R: 225, G: 140, B: 30, A: 255},
		color.RGBA{R: 210, G: 30, B: 30, A: 255},
	}
	grey = color.RGBA{R: 120, G: 120, B: 120, A: 255}
)

// paint draws the accounts served over time with the uneven load. It writes SVG with a
// white background, so that the picture can be read on a dark page.
func (r *results) paint(out io.Writer) error {
	p := plot.New()
	end := 4 * r.floor()
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 0, end, 0, float64(r.accounts)*1.02
	p.X.Padding, p.Y.Padding = 0, 0
	p.X.Label.Text, p.Y.Label.Text = "seconds since all wanted a token", "accounts served"
	p.Title.Text = fmt.Sprintf("%d replicas behind one address, %s; the server takes %d a second", r.drawn, loads[0].title, r.perSecond)
	p.Title.TextStyle.Font, p.Title.Padding = sans(11), 6
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Tick.Label.Font, axis.Label.TextStyle.Font = sans(8), sans(8.5)
		axis.LineStyle.Width, axis.Tick.LineStyle.Width = 0.5, 0.5
	}
	p.Legend.Left, p.Legend.XOffs, p.Legend.YOffs = true, 0.52*width, 20
	p.Legend.TextStyle.Font, p.Legend.ThumbnailWidth, p.Legend.Padding = sans(8.5), 14, 2
	floor, err := plotter.NewLine(plotter.XYs{{X: 0, Y: 0}, {X: r.floor(), Y: float64(r.accounts)}})
	if err != nil {
		return err
	}
	floor.Color, floor.Width, floor.Dashes = grey, 0.7, []vg.Length{2, 2}
	p.Add(floor)
	for j, replicas := range r.replicas {
		if replicas != r.drawn {
			continue
		}
		for k, s := range subjects {
			c := r.crowds[0][j][k]
			line, err := plotter.NewLine(c.servedBy(end))
			if err != nil {
				return err
			}
			line.Color, line.Width = colors[k], 1.6
			p.Add(line)
			all := "not all within " + r.give.String()
			if len(c.served) == r.accounts {
				all = fmt.Sprintf("all after %.0f s", c.served[len(c.served)-1].Seconds())
			}
			p.Legend.Add(fmt.Sprintf("%s: %s, %d refused", s.title, all, c.refused), line)
		}
	}
	p.Legend.Add(fmt.Sprintf("as fast as the server takes them: %.0f s", r.floor()), floor)

	picture := vgsvg.New(width, height)
	canvas := draw.New(picture)
	canvas.SetColor(color.White)
	canvas.Fill(canvas.Rectangle.Path())
	p.Draw(draw.Crop(canvas, 4, -10, 4, -6))
	var svg bytes.Buffer
	if _, err := picture.WriteTo(&svg); err != nil {
		return err
	}
	// A browser without this font would use one with serifs.
	_, err = out.Write(bytes.ReplaceAll(svg.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,sans-serif;")))
	return err
}

// servedBy returns how many accounts had their token at each step up to end, which is
// in seconds.
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

func sans(size vg.Length) font.Font {
	return font.Font{Typeface: "Liberation", Variant: "Sans", Size: size}
}
