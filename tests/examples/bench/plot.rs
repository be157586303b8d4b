//! The curve of cost over live connections, as SVG and as PNG. Computes nothing but coordinates.
#![expect(clippy::float_arithmetic, reason = "coordinates of a picture")]

use std::fs::File;
use std::io::BufWriter;
use std::path::Path as FilePath;

use anyhow::{Context as _, Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use crate::cost::{Cost, Spread};
use crate::matrix::{Family, Kind, Path};
use crate::report::{Finding, Lru};

const WIDTH: u32 = 1280;
const HEIGHT: u32 = 640;
/// Pixels of the PNG for one of the SVG.
const PNG_SCALE: u32 = 2;

const FONT: &str = "sans-serif";
const GREY: RGBColor = RGBColor(150, 150, 150);
const LIGHT: RGBColor = RGBColor(228, 228, 228);

type Chart<'a, DB> = ChartContext<'a, DB, Cartesian2d<LogCoord<f64>, RangedCoordf64>>;

/// Colours that those who see colours differently can tell apart (Okabe and Ito).
type Drawn<DB> = Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

const fn color(path: Path) -> RGBColor {
    match path {
        Path::NatRequest => RGBColor(0, 114, 178),
        Path::NatReply => RGBColor(86, 180, 233),
        Path::Dr => RGBColor(213, 94, 0),
        Path::Tun => RGBColor(0, 158, 115),
    }
}

/// Places points of the same number of flows beside each other.
fn abscissa(finding: &Finding) -> f64 {
    let shift = match finding.experiment.path {
        Path::NatRequest => 0.90,
        Path::NatReply => 0.965,
        Path::Dr => 1.035,
        Path::Tun => 1.11,
    };
    f64::from(finding.experiment.flows) * shift
}

fn nanoseconds(cost: Cost) -> f64 {
    cost.tenths() as f64 / 10.0
}

/// Writes the curve of `findings` in both formats; `false` where none is of established connections.
pub fn write(findings: &[Finding], svg: &FilePath, png: &FilePath) -> Result<bool> {
    let shown: Vec<&Finding> = findings.iter().filter(|finding| finding.experiment.kind == Kind::Established).collect();
    if shown.is_empty() {
        return Ok(false);
    }
    register_font(FONT, FontStyle::Normal, dejavu::sans::regular()).map_err(|_| anyhow!("a font that is no font"))?;
    let canvas = SVGBackend::new(svg, (WIDTH, HEIGHT)).into_drawing_area();
    Picture { findings: &shown, scale: 1 }.draw(&canvas).with_context(|| format!("can't write {}", svg.display()))?;
    let size = (WIDTH * PNG_SCALE, HEIGHT * PNG_SCALE);
    let mut pixels = vec![0; (size.0 * size.1 * 3) as usize];
    let canvas = BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area();
    Picture { findings: &shown, scale: PNG_SCALE }.draw(&canvas).context("can't draw")?;
    drop(canvas);
    encode(png, size, &pixels).with_context(|| format!("can't write {}", png.display()))?;
    Ok(true)
}

fn encode(file: &FilePath, (width, height): (u32, u32), pixels: &[u8]) -> Result<()> {
    let mut encoder = png::Encoder::new(BufWriter::new(File::create(file)?), width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header()?.write_image_data(pixels)?;
    Ok(())
}

struct Picture<'f> {
    findings: &'f [&'f Finding],
    /// Pixels for one of [`WIDTH`] and [`HEIGHT`].
    scale: u32,
}

impl Picture<'_> {
    fn px(&self, size: u32) -> u32 {
        size * self.scale
    }

    /// Both panels, IPv4 and IPv6.
    fn draw<DB: DrawingBackend>(&self, canvas: &DrawingArea<DB, Shift>) -> Drawn<DB> {
        canvas.fill(&WHITE)?;
        let title = "Cost of a packet of an established connection, above an empty XDP program";
        let canvas = canvas.margin(self.px(10), 0, 0, 0).titled(title, (FONT, self.px(19)))?;
        for (family, panel) in Family::ALL.into_iter().zip(canvas.split_evenly((1, 2))) {
            self.panel(&panel, family)?;
        }
        canvas.present()
    }

    fn panel<DB: DrawingBackend>(&self, panel: &DrawingArea<DB, Shift>, family: Family) -> Drawn<DB> {
        let name = match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        let mut chart = ChartBuilder::on(panel)
            .margin(self.px(8))
            .margin_right(self.px(22))
            .caption(name, (FONT, self.px(16)))
            .x_label_area_size(self.px(46))
            .y_label_area_size(self.px(58))
            .build_cartesian_2d((0.7..16e6).log_scale(), 0.0..self.ceiling())?;
        chart
            .configure_mesh()
            .x_desc("live connections, packets in random order")
            .y_desc("ns a packet")
            .x_label_formatter(&|flows| decade(*flows))
            .y_label_formatter(&|nanoseconds| format!("{nanoseconds:.0}"))
            .x_labels(8)
            .y_labels(10)
            .label_style((FONT, self.px(13)))
            .axis_desc_style((FONT, self.px(14)))
            .bold_line_style(LIGHT)
            .light_line_style(TRANSPARENT)
            .draw()?;
        for path in Path::ALL {
            self.lru(&mut chart, family, path)?;
        }
        self.floor(&mut chart, family)?;
        for path in Path::ALL {
            self.limits(&mut chart, family, path)?;
            self.table(&mut chart, family, path)?;
        }
        if family == Family::V4 { self.key(&mut chart) } else { Ok(()) }
    }

    fn of(&self, family: Family, path: Path) -> impl Iterator<Item = &Finding> {
        let is_meant = move |finding: &&Finding| (finding.experiment.family, finding.experiment.path) == (family, path);
        self.findings.iter().copied().filter(is_meant)
    }

    /// The upper end of the ordinate, the same in both panels.
    fn ceiling(&self) -> f64 {
        let highest = self.findings.iter().flat_map(|finding| {
            let lru = match &finding.lru {
                Lru::Measured(lru) => lru.median,
                Lru::None | Lru::Skipped(_) => Cost::default(),
            };
            [lru, finding.table.highest]
        });
        highest.map(nanoseconds).fold(50.0, f64::max) * 1.05
    }

    /// A curve of the control, all in grey: they differ less than they matter.
    fn lru<DB: DrawingBackend>(&self, chart: &mut Chart<'_, DB>, family: Family, path: Path) -> Drawn<DB> {
        let points = self.of(family, path).filter_map(|finding| match &finding.lru {
            Lru::Measured(lru) => Some((abscissa(finding), nanoseconds(lru.median))),
            Lru::None | Lru::Skipped(_) => None,
        });
        let points: Vec<_> = points.collect();
        let radius = self.px(2);
        chart.draw_series(LineSeries::new(points.clone(), GREY.stroke_width(self.scale)))?;
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, radius, GREY.filled())))?;
        Ok(())
    }

    /// What one read of as much memory costs: dots, since nothing was measured between them.
    fn floor<DB: DrawingBackend>(&self, chart: &mut Chart<'_, DB>, family: Family) -> Drawn<DB> {
        let radius = self.px(4);
        let dots = self.of(family, Path::Dr).filter_map(|finding| {
            let floor = nanoseconds(finding.floor?);
            Some(Cross::new((f64::from(finding.experiment.flows), floor), radius, BLACK.stroke_width(self.scale)))
        });
        chart.draw_series(dots)?;
        Ok(())
    }

    /// A curve with the spread of its runs.
    fn table<DB: DrawingBackend>(&self, chart: &mut Chart<'_, DB>, family: Family, path: Path) -> Drawn<DB> {
        let (color, radius) = (color(path), self.px(4));
        for finding in self.of(family, path) {
            let Spread { median: _, lowest, highest } = finding.table;
            let ends = [lowest, highest].map(|cost| (abscissa(finding), nanoseconds(cost)));
            chart.draw_series(LineSeries::new(ends, color.stroke_width(self.scale)))?;
        }
        let points: Vec<_> =
            self.of(family, path).map(|finding| (abscissa(finding), nanoseconds(finding.table.median))).collect();
        chart.draw_series(LineSeries::new(points.clone(), color.stroke_width(self.px(2))))?;
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, radius, color.filled())))?;
        Ok(())
    }

    /// A bar across each number of flows that has a limit.
    fn limits<DB: DrawingBackend>(&self, chart: &mut Chart<'_, DB>, family: Family, path: Path) -> Drawn<DB> {
        for finding in self.of(family, path) {
            let Some(limit) = finding.experiment.limit() else { continue };
            let (x, y) = (f64::from(finding.experiment.flows), Cost::from_tenths(limit * 10));
            let ends = [0.72, 1.39].map(|factor| (x * factor, nanoseconds(y)));
            chart.draw_series(LineSeries::new(ends, color(path).mix(0.55).stroke_width(self.px(2))))?;
        }
        Ok(())
    }

    /// The legend; the series themselves are drawn by others.
    fn key<'a, DB: DrawingBackend + 'a>(&self, chart: &mut Chart<'a, DB>) -> Drawn<DB> {
        let (radius, length, stroke) = (self.px(4) as i32, self.px(24) as i32, self.px(2));
        for path in Path::ALL {
            let color = color(path);
            let line = move |(x, y)| {
                EmptyElement::at((x, y))
                    + PathElement::new([(0, 0), (length, 0)], color.stroke_width(stroke))
                    + Circle::new((length / 2, 0), radius, color.filled())
            };
            chart.draw_series(NOTHING)?.label(path.name()).legend(line);
        }
        let bar = move |(x, y)| PathElement::new([(x, y), (x + length, y)], BLACK.mix(0.55).stroke_width(stroke));
        chart.draw_series(NOTHING)?.label("limit, in the colour of its curve").legend(bar);
        let grey = move |(x, y)| PathElement::new([(x, y), (x + length, y)], GREY.stroke_width(stroke / 2));
        chart.draw_series(NOTHING)?.label("the same with an LRU_HASH").legend(grey);
        let (cross, width) = (self.px(4), self.scale);
        let cross = move |(x, y)| Cross::new((x + length / 2, y), cross, BLACK.stroke_width(width));
        chart.draw_series(NOTHING)?.label("one read of as much memory").legend(cross);
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .margin(self.px(10))
            .legend_area_size(self.px(34))
            .label_font((FONT, self.px(13)))
            .background_style(WHITE)
            .border_style(LIGHT)
            .draw()
    }
}

/// A series without points.
const NOTHING: [PathElement<(f64, f64)>; 0] = [];

/// A power of ten as people say it.
fn decade(flows: f64) -> String {
    let (divisor, unit) = match flows {
        flows if flows >= 1e6 => (1e6, "M"),
        flows if flows >= 1e3 => (1e3, "k"),
        _ => (1.0, ""),
    };
    format!("{:.0}{unit}", flows / divisor)
}
