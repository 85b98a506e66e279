//! Draws the SVG plots of one bench.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{
    figures::{FIGURES, Figure, Kind, Series, collect},
    samples::{Bench, ORDER},
};

/// A plot that was written.
pub struct Plot {
    pub title: &'static str,
    /// Its name in the directory.
    pub file: String,
}

/// Draw what there is to see of a bench into `directory`.
pub fn draw(bench: &Bench, directory: &Path) -> Result<Vec<Plot>> {
    let mut plots = Vec::new();
    for figure in FIGURES.iter().filter(|figure| figure.bench == bench.name) {
        let series = collect(bench, figure);
        if series.is_empty() {
            continue;
        }
        let file = format!("{}-{}.svg", figure.bench, figure.file);
        let path = directory.join(&file);
        let area = SVGBackend::new(&path, SIZE).into_drawing_area();
        match figure.kind {
            Kind::Bars => bars(&area, figure, &series),
            Kind::Lines => lines(&area, figure, &series),
        }
        .and_then(|()| area.present().map_err(|err| anyhow!("{err}")))
        .with_context(|| format!("cannot draw {}", path.display()))?;
        plots.push(Plot {
            title: figure.title,
            file,
        });
    }
    Ok(plots)
}

const SIZE: (u32, u32) = (880, 400);
const MARGIN: i32 = 12;
const LEGEND: i32 = 170;
const GREY: RGBColor = RGBColor(110, 110, 110);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn bars(area: &Area, figure: &Figure, series: &[Series]) -> Result<()> {
    // The share of a group's width that is left free beside its bars.
    const GAP: f64 = 0.2;
    let chart_area = frame(area, figure, series)?;
    let highest = values(series).fold(0.0, f64::max) * 1.05;
    let mut chart = ChartBuilder::on(&chart_area)
        .x_label_area_size(28)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..figure.rows.len() as f64, 0.0..highest)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_label_formatter(&|value| crate::tables::number(*value, 0))
        .y_desc(figure.unit)
        .light_line_style(WHITE)
        .draw()?;
    let width = (1.0 - GAP) / series.len() as f64;
    for (nth, one) in series.iter().enumerate() {
        let style = color(&one.name).filled();
        chart.draw_series(one.points.iter().map(|(group, value)| {
            let left = group + GAP / 2.0 + width * nth as f64;
            Rectangle::new([(left, 0.0), (left + width * 0.92, *value)], style)
        }))?;
    }
    let label = text(13).pos(Pos::new(HPos::Center, VPos::Top));
    for (group, row) in (0..).zip(figure.rows) {
        let (x, y) = chart.backend_coord(&(f64::from(group) + 0.5, 0.0));
        let (left, top) = area.get_base_pixel();
        area.draw(&Text::new(*row, (x - left, y - top + 8), label.clone()))?;
    }
    Ok(())
}

fn lines(area: &Area, figure: &Figure, series: &[Series]) -> Result<()> {
    let chart_area = frame(area, figure, series)?;
    let losses = || {
        series
            .iter()
            .flat_map(|one| &one.points)
            .map(|point| point.0)
    };
    let (least, most) = (
        losses().fold(f64::MAX, f64::min),
        losses().fold(0.0, f64::max),
    );
    let lowest = values(series).fold(f64::MAX, f64::min) * 0.8;
    let highest = values(series).fold(0.0, f64::max) * 1.25;
    let mut chart = ChartBuilder::on(&chart_area)
        .x_label_area_size(40)
        .y_label_area_size(64)
        // A single loss still needs some width around its points.
        .build_cartesian_2d(
            least - 0.1..most + 0.1,
            (lowest.max(1e-3)..highest).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc("packets lost, %")
        .y_desc(figure.unit)
        .y_label_formatter(&|value| crate::tables::number(*value, usize::from(*value < 10.0)))
        .light_line_style(WHITE)
        .draw()?;
    for one in series {
        let style = color(&one.name);
        let width = if one.name.starts_with("qtunnel") {
            3
        } else {
            2
        };
        chart.draw_series(LineSeries::new(
            one.points.iter().copied(),
            style.stroke_width(width),
        ))?;
        chart.draw_series(
            one.points
                .iter()
                .map(|point| Circle::new(*point, 4, style.filled())),
        )?;
    }
    Ok(())
}

fn values(series: &[Series]) -> impl Iterator<Item = f64> {
    series
        .iter()
        .flat_map(|one| &one.points)
        .map(|point| point.1)
}

/// Paint the ground, the title and the legend; what is left is for the chart.
fn frame<'a>(area: &Area<'a>, figure: &Figure, series: &[Series]) -> Result<Area<'a>> {
    const LINE: i32 = 20;
    area.fill(&WHITE)?;
    let title = text(16).color(&BLACK);
    area.draw(&Text::new(figure.title, (MARGIN, MARGIN), title))?;
    let right = SIZE.0 as i32 - LEGEND;
    for (nth, one) in (0..).zip(series) {
        let top = 44 + nth * LINE;
        area.draw(&Rectangle::new(
            [(right, top), (right + 12, top + 12)],
            color(&one.name).filled(),
        ))?;
        area.draw(&Text::new(one.name.clone(), (right + 18, top), text(13)))?;
    }
    Ok(area.margin(40, MARGIN, MARGIN, LEGEND + MARGIN))
}

fn text(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&GREY)
}

/// Ours in blue, everyone else in a colour of their own; paler under another congestion control.
fn color(series: &str) -> RGBAColor {
    const PALETTE: [RGBColor; ORDER.len()] = [
        RGBColor(150, 150, 150),
        RGBColor(20, 90, 200),
        RGBColor(110, 170, 240),
        RGBColor(200, 60, 50),
        RGBColor(230, 140, 30),
        RGBColor(200, 180, 40),
        RGBColor(140, 160, 60),
        RGBColor(120, 70, 160),
        RGBColor(190, 140, 210),
        RGBColor(130, 90, 60),
        RGBColor(60, 150, 140),
    ];
    let peer = series.split(' ').next().unwrap_or(series);
    let place = ORDER.iter().position(|name| *name == peer);
    let color = place.map_or(BLACK, |place| PALETTE[place]);
    color.mix(if series.ends_with(')') { 0.45 } else { 1.0 })
}
