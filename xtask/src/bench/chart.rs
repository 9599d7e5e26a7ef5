// SPDX-License-Identifier: MIT OR Apache-2.0

//! Results as charts: Escrow beside its peers, and how lending grows.

use std::ops::Range;

use anyhow::{Result, anyhow, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::report::{ESCROW, PEERS, Report};
use super::table::{self, AT_ONCE, CPUS, PAGES, number};

const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(51, 51, 51);
const PALE: RGBColor = RGBColor(225, 225, 225);
/// Escrow's colour, then those of peers: distinct also without colour vision.
const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(230, 159, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];

/// The operations of the chart of peers, in the order of its groups.
const OPERATIONS: [&str; 11] = [
    "hvc_el2",
    "hvc_guest",
    "guest_exit",
    "lend_4k",
    "lend_512x4k_per_page",
    "lend_2m",
    "share_4k",
    "share_back_4k",
    "reclaim_4k",
    "reclaim_2m",
    "boot_el2",
];

type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws on an SVG of this size.
fn svg(size: (u32, u32), draw: impl FnOnce(&Canvas<'_>) -> Result<()>) -> Result<String> {
    let mut text = String::new();
    let canvas = SVGBackend::with_string(&mut text, size).into_drawing_area();
    canvas.fill(&WHITE).map_err(failed)?;
    draw(&canvas)?;
    canvas.present().map_err(failed)?;
    drop(canvas);
    Ok(text)
}

/// What plotters has to say is not always `Send`.
fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{error}")
}

fn label(size: u32, h: HPos, v: VPos) -> TextStyle<'static> {
    (FONT, size).into_font().color(&INK).pos(Pos::new(h, v))
}

/// A logarithmic range with room around all of these.
fn decades(values: impl Iterator<Item = f64> + Clone) -> Result<Range<f64>> {
    let least = values.clone().fold(f64::INFINITY, f64::min);
    let most = values.fold(0.0, f64::max);
    ensure!(least > 0.0 && least.is_finite(), "there is nothing to draw");
    Ok(10_f64.powf(least.log10().floor())..10_f64.powf((most * 2.0).log10().ceil()))
}

/// Every operation that a peer has, with a bar for each subject, and Escrow's
/// floor as a line.
pub fn peers(report: &Report) -> Result<String> {
    let subjects = [ESCROW, PEERS[0], PEERS[1], PEERS[2]];
    // As in the tables: of Escrow the mean, of others the least.
    let value = |name: &str, subject: &str| {
        let row = report.find(name, subject)?;
        Some(if subject == ESCROW { row.mean } else { row.min })
    };
    let groups: Vec<_> = OPERATIONS.into_iter().filter(|name| report.own(name).is_some()).collect();
    let all = groups.iter().flat_map(|name| subjects.map(|subject| value(name, subject)));
    let range = decades(all.flatten().collect::<Vec<_>>().into_iter())?;
    let base = range.start;
    svg((1180, 460), |canvas| {
        let mut chart = ChartBuilder::on(canvas)
            .caption("Instructions, less is better", label(18, HPos::Left, VPos::Top))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(90)
            .build_cartesian_2d(0.0..groups.len() as f64, range.log_scale())
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .disable_x_axis()
            .light_line_style(WHITE)
            .bold_line_style(PALE)
            .y_label_style(label(13, HPos::Right, VPos::Center))
            .y_label_formatter(&|value| number(*value))
            .draw()
            .map_err(failed)?;
        const BAR: f64 = 0.2;
        for (s, (subject, colour)) in subjects.iter().zip(COLOURS).enumerate() {
            let bars = groups.iter().enumerate().filter_map(|(g, name)| {
                let left = g as f64 + 0.1 + s as f64 * BAR;
                let corners = [(left, base), (left + BAR * 0.9, value(name, subject)?)];
                Some(Rectangle::new(corners, colour.filled()))
            });
            chart.draw_series(bars).map_err(failed)?.label(*subject).legend(move |(x, y)| {
                Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.filled())
            });
        }
        let floors = groups.iter().enumerate().filter_map(|(g, name)| {
            let floor = report.goal(report.own(name)?).floor?;
            let (left, right) = (g as f64 + 0.05, g as f64 + 0.95);
            Some(PathElement::new([(left, floor), (right, floor)], INK.stroke_width(2)))
        });
        chart
            .draw_series(floors)
            .map_err(failed)?
            .label("floor: hand-written, without checks")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 14, y)], INK.stroke_width(2)));
        // Numbers on the bars, names below the groups.
        for (g, name) in groups.iter().enumerate() {
            for (s, subject) in subjects.iter().enumerate() {
                let Some(value) = value(name, subject) else { continue };
                let left = g as f64 + 0.1 + (s as f64 + 0.45) * BAR;
                let (x, y) = chart.backend_coord(&(left, value));
                let style = label(10, HPos::Left, VPos::Center).transform(FontTransform::Rotate270);
                canvas.draw(&Text::new(number(value), (x, y - 3), style)).map_err(failed)?;
            }
            let (x, y) = chart.backend_coord(&(g as f64 + 0.5, base));
            // Long names in two lines.
            let (first, second) = match name.split_once("_per_") {
                Some((first, second)) => (first, format!("per {second}")),
                None => (*name, String::new()),
            };
            for (text, y) in [(first, y + 6), (&second, y + 20)] {
                let style = label(12, HPos::Center, VPos::Top);
                canvas.draw(&Text::new(text.to_owned(), (x, y), style)).map_err(failed)?;
            }
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .label_font(label(13, HPos::Left, VPos::Center))
            .background_style(WHITE.mix(0.9))
            .draw()
            .map_err(failed)
    })
}

/// A line of a chart: its name, and its value at each place of the axis.
type Line<'a> = (&'a str, [Option<f64>; 4]);

/// How lending grows with the pages of a call, and with the CPUs that lend.
pub fn growth(report: &Report) -> Result<String> {
    let pages = [
        ("adjacent frames", PAGES.map(|pages| table::per_page(report, pages, false))),
        ("scattered frames", PAGES.map(|pages| table::per_page(report, pages, true))),
    ];
    let cpus = AT_ONCE.map(|(what, name)| (name, CPUS.map(|n| table::at_once(report, what, n))));
    svg((1000, 400), |canvas| {
        let (left, right) = canvas.split_horizontally(500);
        lines(&left, "Instructions a page, by pages a call", PAGES, &pages)?;
        lines(&right, "Instructions of each CPU, by CPUs that lend at once", CPUS, &cpus)
    })
}

fn lines(canvas: &Canvas<'_>, title: &str, axis: [u32; 4], series: &[Line<'_>]) -> Result<()> {
    let values: Vec<_> = series.iter().flat_map(|(_, values)| values).copied().flatten().collect();
    let most = values.iter().copied().fold(0.0, f64::max);
    ensure!(most > 0.0, "there is nothing to draw");
    let mut chart = ChartBuilder::on(canvas)
        .caption(title, label(16, HPos::Left, VPos::Top))
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(60)
        .build_cartesian_2d(-0.3..3.3, 0.0..most * 1.45)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .light_line_style(WHITE)
        .bold_line_style(PALE)
        .y_label_style(label(13, HPos::Right, VPos::Center))
        .y_label_formatter(&|value| number(value.round()))
        .draw()
        .map_err(failed)?;
    // The chart's coordinates are of the whole picture, ours of the canvas.
    let (left, top) = canvas.get_base_pixel();
    let mut numbered = Vec::new();
    for ((name, values), colour) in series.iter().zip(COLOURS) {
        let points = values.iter().enumerate().filter_map(|(n, value)| Some((n as f64, (*value)?)));
        let points: Vec<_> = points.collect();
        chart
            .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)).point_size(3))
            .map_err(failed)?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour.stroke_width(2)));
        for (x, value) in points {
            let (x, y) = chart.backend_coord(&(x, value));
            // Where lines meet, one number is enough.
            let hidden = |&(a, b): &(i32, i32)| (x - a).abs() < 40 && (y - b).abs() < 14;
            if !numbered.iter().any(hidden) {
                numbered.push((x, y));
                let style = label(11, HPos::Center, VPos::Bottom);
                let at = (x - left, y - top - 5);
                canvas.draw(&Text::new(number(value), at, style)).map_err(failed)?;
            }
        }
    }
    for (n, name) in axis.into_iter().enumerate() {
        let (x, y) = chart.backend_coord(&(n as f64, 0.0));
        let style = label(13, HPos::Center, VPos::Top);
        let at = (x - left, y - top + 6);
        canvas.draw(&Text::new(name.to_string(), at, style)).map_err(failed)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(label(13, HPos::Left, VPos::Center))
        .background_style(WHITE.mix(0.9))
        .draw()
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{PKVM, Row};

    #[test]
    fn charts_show_what_was_measured() {
        let row = |name: &str, subject: &str, mean| Row::instructions(name, subject, mean, mean, 1);
        let report = Report(vec![
            row("lend_4k", ESCROW, 250.0),
            row("lend_4k", PKVM, 2728.0),
            row("lend_8x4k_per_page", ESCROW, 75.0),
            row("lend_4k_cpus_8", ESCROW, 251.0),
        ]);
        let peers = peers(&report).unwrap();
        assert!(peers.contains("2,728") && peers.contains("lend_4k") && !peers.contains("boot"));
        let growth = growth(&report).unwrap();
        assert!(growth.contains("251") && growth.contains("scattered"));
    }

    #[test]
    fn nothing_makes_no_chart() {
        assert!(peers(&Report::default()).is_err());
        assert!(growth(&Report::default()).is_err());
    }
}
