//! How it looks: a line for each guest, and beside it where its migration is.

use mig_engine::report::{Progress, Time};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row as Shown, Table};

use super::rows::{Row, Rows};

/// The columns: heading and width in characters. What does not fit on the right is not shown.
const COLUMNS: [(&str, u16); 11] = [
    ("STATE", 17),
    ("VCPUS", 5),
    ("MEMORY", 9),
    ("CPU", 5),
    ("PHASE", 9),
    ("ROUND", 5),
    ("SENT", 9),
    ("OF", 9),
    ("RATE", 11),
    ("LEFT", 11),
    ("THROTTLE", 8),
];

/// Between two columns.
const SPACING: u16 = 2;

/// A name is shown in so many characters at least, and at most.
const NAME: std::ops::RangeInclusive<usize> = 4..=24;

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, rows: &Rows) {
    let [head, table, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget(Line::from(summary(rows)).style(bold()), head);
    frame.render_widget(Line::from("q ends it"), foot);
    let longest = rows.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let name = longest.clamp(*NAME.start(), *NAME.end()) as u16;
    let columns = &COLUMNS[..columns_beside(name, table.width)];
    let widths = [name].into_iter().chain(columns.iter().map(|(_, width)| *width));
    let headings = ["NAME"].into_iter().chain(columns.iter().map(|(heading, _)| *heading));
    let lines = rows.rows.iter().map(|row| line(row, columns.len()));
    let heading = Shown::new(headings.map(Cell::from)).style(reversed());
    let lines = Table::new(lines, widths.map(Constraint::Length)).header(heading);
    frame.render_widget(lines.column_spacing(SPACING), table);
}

/// How many columns a terminal of this width has room for beside the names: a figure that is cut is
/// another figure.
fn columns_beside(name: u16, width: u16) -> usize {
    let mut taken = name;
    COLUMNS
        .iter()
        .take_while(|(_, column)| {
            taken = taken.saturating_add(SPACING + column);
            taken <= width
        })
        .count()
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn reversed() -> Style {
    Style::new().add_modifier(Modifier::REVERSED)
}

fn summary(rows: &Rows) -> String {
    if let Some(problem) = &rows.problem {
        return problem.clone();
    }
    let count = |begins: &str| rows.rows.iter().filter(|row| row.state.starts_with(begins)).count();
    let all = rows.rows.len();
    format!(
        "{all} guest{}, {} running, {} migrating, {} arriving",
        if all == 1 { "" } else { "s" },
        count("running"),
        count("migrating"),
        count("receiving") + count("prepared")
    )
}

fn line(row: &Row, columns: usize) -> Shown<'static> {
    let or_nothing = |text: Option<String>| text.unwrap_or_default();
    let progress = row.progress.as_ref();
    let of = |text: fn(&Progress) -> String| or_nothing(progress.map(text));
    let moves = progress.is_some();
    let cells = [
        row.name.clone(),
        row.state.clone(),
        or_nothing(row.vcpus.map(|vcpus| vcpus.to_string())),
        or_nothing(row.memory.map(|memory| memory.to_string())),
        or_nothing(row.cpu.map(|percent| format!("{percent:.0}%"))),
        of(|it| it.phase.to_string()),
        of(|it| it.round.to_string()),
        of(|it| it.sent.to_string()),
        of(|it| it.total.to_string()),
        of(|it| it.rate.to_string()),
        of(|it| it.eta.map(|eta| Time(eta).to_string()).unwrap_or_default()),
        match row.throttle {
            0 => String::new(),
            percent => format!("{percent}%"),
        },
    ];
    let line = Shown::new(cells.into_iter().take(1 + columns).map(Cell::from));
    if moves { line.style(bold()) } else { line }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mig_engine::report::Phase;
    use migpipe_units::{Bytes, BytesPerSec, Pages};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn row(name: &str, state: &str) -> Row {
        Row {
            name: name.to_owned(),
            state: state.to_owned(),
            vcpus: Some(2),
            memory: Some(Bytes(512 << 20)),
            cpu: Some(98.6),
            throttle: 0,
            progress: None,
        }
    }

    fn on_a_screen(rows: &Rows, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, rows)).unwrap();
        let buffer = terminal.backend().buffer();
        let lines = buffer.content().chunks(usize::from(width));
        lines
            .map(|cells| cells.iter().map(|cell| cell.symbol()).collect::<String>())
            .map(|line| line.trim_end().to_owned())
            .collect()
    }

    fn three() -> Rows {
        let progress = Progress {
            phase: Phase::PreCopy,
            round: 3,
            sent: Bytes(100 << 20),
            total: Bytes(400 << 20),
            dirty: Pages(9),
            rate: BytesPerSec(50 << 20),
            eta: Some(Duration::from_secs(6)),
            throttle: 20,
        };
        let moves = Row { throttle: 20, progress: Some(progress), ..row("db", "migrating") };
        let silent = Row { vcpus: None, memory: None, cpu: None, ..row("old", "no answer") };
        Rows { rows: vec![moves, silent, row("web", "running")], problem: None }
    }

    #[test]
    fn guests_states_migrations_and_rates_are_in_a_table() {
        let screen = on_a_screen(&three(), 140, 7);
        assert_eq!(screen[0], "3 guests, 1 running, 1 migrating, 0 arriving");
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            words(&screen[1]),
            [
                "NAME", "STATE", "VCPUS", "MEMORY", "CPU", "PHASE", "ROUND", "SENT", "OF", "RATE",
                "LEFT", "THROTTLE"
            ]
        );
        let moves = screen[2].split("  ").map(str::trim).filter(|cell| !cell.is_empty());
        assert_eq!(
            moves.collect::<Vec<_>>(),
            [
                "db",
                "migrating",
                "2",
                "512 MiB",
                "99%",
                "pre-copy",
                "3",
                "100 MiB",
                "400 MiB",
                "50.0 MiB/s",
                "6.00 s",
                "20%"
            ]
        );
        assert_eq!(words(&screen[3]), ["old", "no", "answer"]);
        assert_eq!(words(&screen[4]), ["web", "running", "2", "512", "MiB", "99%"]);
        assert_eq!(screen[6], "q ends it");
    }

    #[test]
    fn a_small_terminal_shows_what_it_has_room_for() {
        let screen = on_a_screen(&three(), 30, 4);
        assert!(screen[1].starts_with("NAME  STATE"), "{screen:?}");
        assert!(screen[2].starts_with("db    migrating"), "{screen:?}");
        assert_eq!(screen[3], "q ends it");
        for (width, height) in [(1, 1), (4, 2), (200, 3)] {
            on_a_screen(&three(), width, height);
        }
    }

    #[test]
    fn no_guest_and_no_directory_are_said() {
        assert!(on_a_screen(&Rows::default(), 80, 5)[0].starts_with("0 guests"));
        let problem = Some("cannot read /run/vmrun".to_owned());
        let rows = Rows { rows: Vec::new(), problem };
        assert_eq!(on_a_screen(&rows, 80, 5)[0], "cannot read /run/vmrun");
    }
}
