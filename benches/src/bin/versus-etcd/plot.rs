//! The ratios as a picture.

use std::path::Path;

use anyhow::{Context as _, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::Report;

const WIDTH: i32 = 860;
const ROW: i32 = 64;
const TOP: i32 = 84;
const LEFT: i32 = 290;
const RIGHT: i32 = 70;

/// Writes the plot: a bar for the median of each load, a dot for each turn, on one scale.
pub fn write(path: &Path, report: &Report) -> Result<()> {
    let ink = RGBColor(40, 44, 52);
    let grid = RGBColor(215, 219, 226);
    let colour = RGBColor(38, 166, 141);
    let dots = RGBColor(13, 110, 95);
    let height = TOP + ROW * report.rows.len() as i32 + 56;
    let all = report
        .rows
        .iter()
        .flat_map(|row| row.ratios.iter().chain(&row.goal));
    let highest = all.fold(2.0, |high: f64, ratio| high.max(*ratio)) * 1.08;
    let x = |ratio: f64| LEFT + (f64::from(WIDTH - LEFT - RIGHT) * ratio / highest).round() as i32;
    let font = |size: i32| ("sans-serif", size).into_font().color(&ink);
    let anchored = |size, horizontal| font(size).pos(Pos::new(horizontal, VPos::Center));

    let root = SVGBackend::new(path, (WIDTH as u32, height as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    root.draw(&Text::new(
        "How many times as fast as etcd: three nodes each, mutual TLS on loopback",
        (24, 22),
        font(20),
    ))?;
    let versions = format!(
        "{} against {}; bar: median, dot: a turn",
        report.quorate, report.etcd
    );
    root.draw(&Text::new(versions, (24, 50), font(14)))?;
    let bottom = TOP + ROW * report.rows.len() as i32;
    let step = (highest / 8.0).ceil().max(1.0);
    let mut mark = 0.0;
    while mark <= highest {
        let at = x(mark);
        let line = if mark == 1.0 {
            ink.stroke_width(1)
        } else {
            grid.stroke_width(1)
        };
        root.draw(&PathElement::new([(at, TOP - 6), (at, bottom)], line))?;
        root.draw(&Text::new(
            format!("{mark}"),
            (at, bottom + 16),
            anchored(14, HPos::Center),
        ))?;
        mark += step;
    }
    for (at, row) in (0..).zip(&report.rows) {
        let middle = TOP + ROW * at + ROW / 2;
        root.draw(&Text::new(
            row.load,
            (LEFT - 14, middle),
            anchored(15, HPos::Right),
        ))?;
        root.draw(&Rectangle::new(
            [(x(0.0), middle - 15), (x(row.ratio), middle + 15)],
            colour.filled(),
        ))?;
        for ratio in &row.ratios {
            root.draw(&Circle::new((x(*ratio), middle), 4, dots.filled()))?;
        }
        let label = format!("{:.1}", row.ratio);
        root.draw(&Text::new(
            label,
            (x(row.ratio.max(0.0)) + 10, middle - 22),
            anchored(15, HPos::Left),
        ))?;
        if let Some(goal) = row.goal {
            root.draw(&PathElement::new(
                [(x(goal), middle - 24), (x(goal), middle + 24)],
                RED.stroke_width(2),
            ))?;
            root.draw(&Text::new(
                "goal",
                (x(goal) + 6, middle + 22),
                anchored(13, HPos::Left),
            ))?;
        }
    }
    root.present().context("the plot was not written")?;
    Ok(())
}
