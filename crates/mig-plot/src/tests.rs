use std::time::Duration;

use mig_engine::precopy::RoundStats;
use mig_engine::report::{Downtime, EndedBy, Mode, Promise, Report, ReportOutcome, Totals};
use migpipe_units::{BytesPerSec, MigrationId, Pages};
use roxmltree::{Document, Node};

use super::*;

const MS: Duration = Duration::from_millis(1);

fn round(number: u32, sent: u64, fills: u64, deferred: u64, dirtied: u64) -> RoundStats {
    RoundStats {
        number,
        sent: Pages(sent),
        fills: Pages(fills),
        bytes: Pages(sent).bytes(),
        deferred: Pages(deferred),
        dirtied: Pages(dirtied),
        duration: 24 * MS,
        rate: BytesPerSec(1 << 30),
    }
}

/// A migration that failed before its first round.
fn empty() -> Report {
    Report {
        version: Report::VERSION,
        guest: "web".to_owned(),
        migration: MigrationId::from_bytes([7; 16]),
        mode: Mode::BothWays,
        format_version: 1,
        outcome: ReportOutcome::Failed,
        reason: Some("the destination did not say that it is ready".to_owned()),
        location: None,
        needed_downtime: None,
        rounds: Vec::new(),
        blackout: None,
        histogram: Vec::new(),
        ended_by: None,
        throttle: Vec::new(),
        downtime: Downtime::default(),
        promise: Promise::new(Some(100 * MS), None),
        totals: Totals::default(),
    }
}

fn moved() -> Report {
    let total = Some(9 * MS);
    Report {
        outcome: ReportOutcome::Completed,
        reason: None,
        location: None,
        rounds: vec![
            round(0, 98_304, 34_864, 0, 6_901),
            round(1, 6_901, 0, 0, 2_345),
            round(2, 2_001, 0, 344, 31),
        ],
        blackout: Some(round(3, 375, 0, 0, 0)),
        histogram: vec![Pages(126_267), Pages(4_556), Pages(2_345)],
        ended_by: Some(EndedBy { rule: "converged".into(), text: "converged: 31 left".into() }),
        downtime: Downtime {
            total,
            last_harvest: Some(MS),
            last_pages: Some(2 * MS),
            state_save: Some(MS),
            transfer: Some(MS),
            state_load: Some(MS),
            disk_flush: Some(MS),
            go: Some(MS),
            first_instruction: Some(MS),
        },
        promise: Promise::new(Some(100 * MS), total),
        ..empty()
    }
}

fn one_way_of_one_round() -> Report {
    Report {
        mode: Mode::OneWay,
        rounds: vec![round(0, 98_304, 0, 0, 0)],
        blackout: None,
        histogram: vec![Pages(98_304)],
        downtime: Downtime {
            last_harvest: Some(MS),
            last_pages: Some(4 * MS),
            ..Downtime::default()
        },
        promise: Promise::new(Some(8 * MS), None),
        ..moved()
    }
}

fn thirty_rounds() -> Report {
    Report {
        rounds: (0..30).map(|number| round(number, 9_000 - u64::from(number), 1, 5, 259)).collect(),
        blackout: Some(round(30, 259, 0, 0, 0)),
        histogram: (0..31).map(|times| Pages(60_000 >> times)).collect(),
        ..moved()
    }
}

fn huge() -> Report {
    let most = Duration::from_nanos(u64::MAX);
    Report {
        guest: "<W&W>".repeat(60) + "\x1b[2J\u{0}",
        rounds: vec![round(u32::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX); 1000],
        blackout: Some(round(u32::MAX, 1, 1, 1, 1)),
        histogram: (0..255).map(|times| Pages(u64::MAX >> (times / 4))).collect(),
        downtime: Downtime {
            total: Some(MS),
            last_harvest: Some(most),
            last_pages: Some(Duration::MAX),
            state_save: Some(Duration::from_nanos(1)),
            ..Downtime::default()
        },
        promise: Promise::new(Some(Duration::MAX), Some(most)),
        ..moved()
    }
}

fn all() -> [Report; 5] {
    [empty(), one_way_of_one_round(), moved(), thirty_rounds(), huge()]
}

fn texts(svg: &str) -> Vec<String> {
    let document = Document::parse(svg).unwrap();
    let texts = document.descendants().filter(|node| node.has_tag_name("text"));
    texts.map(|node| node.text().unwrap_or_default().trim().to_owned()).collect()
}

fn elements(svg: &str, name: &str, colour: plotters::style::RGBColor) -> usize {
    let hex = format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2);
    let document = Document::parse(svg).unwrap();
    let painted = |node: &Node<'_, '_>| {
        [node.attribute("fill"), node.attribute("stroke")].contains(&Some(hex.as_str()))
    };
    document.descendants().filter(|node| node.has_tag_name(name) && painted(node)).count()
}

/// Every number of these attributes.
fn places(node: &Node<'_, '_>, attributes: &[&str]) -> Vec<f64> {
    attributes.iter().filter_map(|name| node.attribute(*name)?.parse().ok()).collect()
}

#[test]
fn every_figure_of_every_report_stays_on_its_sheet() {
    for report in all() {
        for figure in Figure::ALL {
            let svg = figure.svg(&report).unwrap();
            let document = Document::parse(&svg).unwrap();
            let root = document.root_element();
            assert_eq!(root.attribute("viewBox"), Some("0 0 1200 675"));
            for node in root.descendants() {
                let x = places(&node, &["x", "x1", "x2", "cx"]);
                let y = places(&node, &["y", "y1", "y2", "cy"]);
                assert!(x.iter().all(|x| (0.0..=1200.0).contains(x)), "{node:?}");
                assert!(y.iter().all(|y| (0.0..=675.0).contains(y)), "{node:?}");
            }
        }
    }
}

#[test]
fn every_figure_of_every_report_is_a_png_that_is_not_blank() {
    for report in all() {
        for figure in Figure::ALL {
            let file = figure.png(&report).unwrap();
            let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
            let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
            let info = reader.next_frame(&mut pixels).unwrap();
            assert_eq!((info.width, info.height), (WIDTH, HEIGHT));
            assert_eq!(info.color_type, png::ColorType::Rgb);
            assert_eq!(pixels[..3], [255; 3], "the corner is white");
            // A title of capitals alone has some thousand dark pixels.
            let dark = pixels.chunks_exact(3).filter(|pixel| pixel[0] < 100).count();
            assert!(dark > 1_000, "{figure:?} has {dark} dark pixels");
        }
    }
}

#[test]
fn no_two_texts_of_a_figure_lie_on_each_other() {
    for report in all() {
        for figure in Figure::ALL {
            let svg = figure.svg(&report).unwrap();
            let document = Document::parse(&svg).unwrap();
            let boxes: Vec<_> = document
                .descendants()
                .filter(|node| node.has_tag_name("text"))
                .map(|node| {
                    let text = node.text().unwrap_or_default().trim();
                    let at = places(&node, &["x", "y", "font-size"]);
                    // Half of the size is about the mean width of a letter.
                    let (width, height) = (text.chars().count() as f64 * at[2] * 0.5, at[2] * 0.8);
                    let left = match node.attribute("text-anchor") {
                        Some("start") => at[0],
                        Some("middle") => at[0] - width / 2.0,
                        _ => at[0] - width,
                    };
                    (
                        text.to_owned(),
                        left,
                        left + width,
                        at[1] - height / 2.0,
                        at[1] + height / 2.0,
                    )
                })
                .collect();
            for (index, a) in boxes.iter().enumerate() {
                for b in &boxes[index + 1..] {
                    let apart = a.2 <= b.1 || b.2 <= a.1 || a.4 <= b.3 || b.4 <= a.3;
                    assert!(apart, "{figure:?}: '{}' lies on '{}'", a.0, b.0);
                }
            }
        }
    }
}

#[test]
fn the_curves_that_a_migration_has_are_drawn_and_named() {
    let svg = Figure::Rounds.svg(&moved()).unwrap();
    let said = texts(&svg);
    for name in ["sent as bytes", "sent as a pattern (fills)", "dirtied meanwhile", "blackout"] {
        assert!(said.iter().any(|text| text == name), "'{name}' is not in {said:?}");
    }
    // A point for each count that is not 0, and one in the legend.
    assert_eq!(elements(&svg, "circle", palette::BLUE), 4 + 1);
    assert_eq!(elements(&svg, "polygon", palette::VERMILLION), 3 + 1);
    assert_eq!(elements(&svg, "polygon", palette::GREEN), 1 + 1);
    assert_eq!(elements(&svg, "polygon", palette::PURPLE), 1 + 1);

    let said = texts(&Figure::Rounds.svg(&one_way_of_one_round()).unwrap());
    for absent in ["dirtied meanwhile", "deferred to the blackout", "blackout"] {
        assert!(!said.iter().any(|text| text == absent), "'{absent}' is in {said:?}");
    }
}

#[test]
fn a_rule_whose_figures_have_no_room_is_named_without_them() {
    let ended = |text: &str| {
        let mut report = moved();
        report.ended_by.as_mut().unwrap().text = text.to_owned();
        texts(&Figure::Rounds.svg(&report).unwrap()).join("\n")
    };
    let long = "no progress: in 2 rounds fewer pages were sent (1161) than became dirty (1209)";
    let said = ended(long);
    assert!(said.contains("; no progress\n") && !said.contains("..."), "{said}");
    assert!(ended("converged: 31 left").contains("; converged: 31 left"));
}

#[test]
fn a_histogram_has_a_bar_for_each_count_and_says_how_high_it_is() {
    let svg = Figure::Sent.svg(&moved()).unwrap();
    assert_eq!(elements(&svg, "rect", palette::BLUE), 3);
    let said = texts(&svg);
    for label in ["126,267", "4,556", "2,345", "1x", "2x", "3x"] {
        assert!(said.iter().any(|text| text == label), "'{label}' is not in {said:?}");
    }
    assert!(said.iter().any(|text| text.contains("94.8% of them sent only once")), "{said:?}");
}

#[test]
fn a_downtime_is_one_bar_of_all_its_phases() {
    let svg = Figure::Downtime.svg(&moved()).unwrap();
    let document = Document::parse(&svg).unwrap();
    let colours = [
        palette::SKY,
        palette::BLUE,
        palette::GREEN,
        palette::YELLOW,
        palette::ORANGE,
        palette::GREY,
        palette::VERMILLION,
        palette::PURPLE,
    ];
    let mut end = f64::from(sheet::LEFT);
    for colour in colours {
        let hex = format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2);
        let segment = document
            .descendants()
            .find(|node| node.has_tag_name("rect") && node.attribute("fill") == Some(&hex))
            .unwrap();
        let at = places(&segment, &["x", "width"]);
        assert!((at[0] - end).abs() <= 4.0, "{hex} begins at {} and not at {end}", at[0]);
        end = at[0] + at[1];
        assert_eq!(elements(&svg, "rect", colour), 2, "one in the bar, one in the table");
    }
    assert!((end - f64::from(WIDTH - 60)).abs() <= 4.0, "the bar ends at {end}");
    let said = texts(&svg);
    assert!(said.iter().any(|text| text == "Downtime by phase: 9.00 ms"), "{said:?}");
    assert!(said.iter().any(|text| text.ends_with("at most 100 ms promised, and kept")));
}

#[test]
fn what_is_not_there_is_said() {
    let said = |figure: Figure| texts(&figure.svg(&empty()).unwrap()).join("\n");
    assert!(said(Figure::Rounds).contains("no round was sent"));
    assert!(said(Figure::Sent).contains("no page was sent"));
    assert!(said(Figure::Downtime).contains("no downtime was measured"));
    for figure in Figure::ALL {
        assert!(said(figure).contains("web: failed; the guest runs on at the source"));
    }
    let one_way = texts(&Figure::Downtime.svg(&one_way_of_one_round()).unwrap());
    assert_eq!(one_way.iter().filter(|text| *text == "not known").count(), 6);
    assert!(one_way.iter().any(|text| text == "promised"), "{one_way:?}");
}
