//! Manual pages.
//!
//! What `--help` says is the source of all of it. Its closing part is made of sections, each with
//! its heading on a line (`Exit status:`) and its lines indented below; there, two spaces or more
//! part a term from what it means. Examples stay as they are written.

use std::io;

use clap::{Arg, ArgAction, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

/// When the pages were last changed to some extent; man(7) wants to know.
const DATE: &str = "2026-11-28";

/// What a manual page says beside the command line itself.
#[derive(Clone, Copy, Debug)]
pub struct Manual {
    /// Environment variables, and what they do.
    pub environment: &'static [(&'static str, &'static str)],
    /// Files, and what is in them.
    pub files: &'static [(&'static str, &'static str)],
}

impl Manual {
    /// Of a program that needs nothing of its host.
    pub const OF_NO_HOST: Self = Self { environment: &[], files: &[] };

    /// Of a program that deals with the guests of its host.
    pub const OF_A_HOST: Self = Self {
        environment: &[
            (
                "XDG_RUNTIME_DIR",
                "Where the directory vmrun with the control sockets is, instead of /run. Root's is \
                 in /run also where a login has set this variable to its own, below /run/user.",
            ),
            (
                "XDG_STATE_HOME",
                "Where the directory vmrun with what this host remembers is, instead of \
                 ~/.local/state, or /var/lib for root.",
            ),
            ("PATH", "Where the other programs are looked for that are not beside this one."),
        ],
        files: &[
            ("/run/vmrun/NAME.sock", "The control socket of the guest NAME."),
            (
                "/var/lib/vmrun/migrations/",
                "What this host remembers of each migration that brought a guest.",
            ),
            (
                "/var/lib/vmrun/log/NAME.log",
                "What the vmrun of the guest NAME says that mig-recv has started.",
            ),
        ],
    };
}

/// All programs, each of which is best read with the others.
const PROGRAMS: [&str; 5] = ["mig-inspect", "mig-recv", "mig-send", "vmctl", "vmrun"];

/// The page of `command`, as man(7) text.
pub(crate) fn page(command: Command, manual: &Manual) -> io::Result<Vec<u8>> {
    let name = command.get_name().to_owned();
    let sections = sections(&command);
    let page = Man::new(with(&command, command.get_arguments().filter(|arg| !arg.is_hide_set())))
        .title(name.to_uppercase())
        .date(DATE)
        .manual("migpipe");
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    text.extend(roff(|roff| {
        roff.control("SH", ["SYNOPSIS"]);
        roff.text(synopsis(&name, &command));
    })?);
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    if command.has_subcommands() {
        text.extend(roff(|roff| {
            roff.control("SH", ["COMMANDS"]);
        })?);
        for subcommand in command.get_subcommands().filter(|one| !one.is_hide_set()) {
            text.extend(subcommand_text(&name, subcommand)?);
        }
    }
    let (examples, others): (Vec<_>, Vec<_>) =
        sections.into_iter().partition(|(heading, _)| heading == "EXAMPLES");
    for (title, lines) in &others {
        text.extend(terms(title, &parted(lines))?);
    }
    for (title, list) in [("ENVIRONMENT", manual.environment), ("FILES", manual.files)] {
        let list: Vec<_> = list.iter().map(|(term, text)| (Some(*term), *text)).collect();
        text.extend(terms(title, &list)?);
    }
    for (title, lines) in &examples {
        text.extend(as_written(title, lines)?);
    }
    text.extend(see_also(&name)?);
    Ok(tidy(&text))
}

/// A copy of `command` with these arguments alone.
fn with<'a>(command: &Command, args: impl Iterator<Item = &'a Arg>) -> Command {
    let copy = Command::new(command.get_name().to_owned())
        .about(command.get_about().cloned().unwrap_or_default())
        .long_about(command.get_long_about().or(command.get_about()).cloned().unwrap_or_default())
        .disable_help_subcommand(true)
        .args(args.cloned());
    match command.get_version() {
        Some(version) => copy.version(version.to_owned()),
        None => copy,
    }
}

/// How to use one subcommand: it has no page of its own.
fn subcommand_text(program: &str, command: &Command) -> io::Result<Vec<u8>> {
    let own = command.get_arguments().filter(|arg| !arg.is_hide_set() && !arg.is_global_set());
    let page = Man::new(with(command, own).disable_help_flag(true));
    let (mut about, mut options) = (Vec::new(), Vec::new());
    page.render_description_section(&mut about)?;
    page.render_options_section(&mut options)?;
    let name = command.get_name();
    let mut text = roff(|roff| {
        roff.control("SS", [name]);
        roff.text(synopsis(&format!("{program} {name}"), command));
        roff.control("PP", []);
    })?;
    text.extend(without_heading(&about));
    text.extend(without_heading(&options));
    Ok(text)
}

/// How to call `name`: its options with their values, then what it takes beside them.
fn synopsis(name: &str, command: &Command) -> Vec<Inline> {
    let told = |arg: &&Arg| {
        let is_help = matches!(
            arg.get_action(),
            ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
        );
        !(is_help || arg.is_hide_set() || (arg.is_global_set() && !command.has_subcommands()))
    };
    let (positional, options): (Vec<_>, Vec<_>) =
        command.get_arguments().filter(told).partition(|arg| arg.is_positional());
    let mut line = vec![bold(name)];
    for option in options {
        line.extend(usage(option));
    }
    for argument in positional {
        line.extend(usage(argument));
    }
    if command.has_subcommands() {
        line.extend([
            roman(" "),
            italic("COMMAND"),
            roman(" ["),
            italic("ARGUMENT"),
            roman("]..."),
        ]);
    }
    line
}

/// An option or argument as a synopsis has it: `[--net ID=TAP]...`.
fn usage(arg: &Arg) -> Vec<Inline> {
    let short = arg.get_short().map(|short| format!("-{short}"));
    let long = arg.get_long().map(|long| format!("--{long}"));
    let flags: Vec<_> = [short, long].into_iter().flatten().collect();
    let mut inlines = vec![roman(if arg.is_required_set() { " " } else { " [" })];
    if arg.is_last_set() {
        inlines.extend([bold("--"), roman(" ")]);
    }
    inlines.push(bold(flags.join("|")));
    if arg.get_action().takes_values() {
        let separator = if flags.is_empty() { "" } else { " " };
        inlines.push(roman(separator));
        inlines.push(italic(arg.get_value_names().unwrap_or_default().join(" ")));
    }
    inlines.push(roman(if arg.is_required_set() { "" } else { "]" }));
    if matches!(arg.get_action(), ArgAction::Append) {
        inlines.push(roman("..."));
    }
    inlines
}

/// A piece of a page.
fn roff(write: impl FnOnce(&mut Roff)) -> io::Result<Vec<u8>> {
    let mut roff = Roff::new();
    write(&mut roff);
    let mut text = Vec::new();
    roff.to_writer(&mut text)?;
    Ok(text)
}

/// A section without the line that begins it.
fn without_heading(section: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(section);
    let lines = text.lines().filter(|line| !line.starts_with(".SH "));
    lines.flat_map(|line| [line, "\n"]).collect::<String>().into_bytes()
}

/// The sections of the closing part of `--help`: headings, and lines.
fn sections(command: &Command) -> Vec<(String, Vec<String>)> {
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let mut sections: Vec<(String, Vec<String>)> = Vec::new();
    for line in help.lines().filter(|line| !line.trim().is_empty()) {
        match (line.strip_suffix(':'), sections.last_mut()) {
            (Some(heading), _) if !heading.starts_with(' ') => {
                sections.push((heading.to_uppercase(), Vec::new()));
            }
            (_, Some((_, lines))) => lines.push(line.trim_start().to_owned()),
            (_, None) => sections.push(("NOTES".to_owned(), vec![line.to_owned()])),
        }
    }
    sections
}

/// Lines as terms and what they mean; a line without a term is plain text.
fn parted(lines: &[String]) -> Vec<(Option<&str>, &str)> {
    let part = |line| match str::split_once(line, "  ") {
        Some((term, meaning)) => (Some(term), meaning.trim_start()),
        None => (None, line),
    };
    lines.iter().map(|line| part(line.as_str())).collect()
}

/// A section of terms; nothing if there are none.
fn terms(title: &str, list: &[(Option<&str>, &str)]) -> io::Result<Vec<u8>> {
    roff(|roff| {
        if !list.is_empty() {
            roff.control("SH", [title]);
        }
        for (number, (term, meaning)) in list.iter().enumerate() {
            match term {
                Some(term) => {
                    roff.control("TP", []);
                    roff.text([bold(*term)]);
                }
                // A paragraph macro right behind a heading is one too many.
                None if number > 0 => {
                    roff.control("PP", []);
                }
                None => {}
            }
            roff.text([roman(*meaning)]);
        }
    })
}

/// A section whose lines are not filled.
fn as_written(title: &str, lines: &[String]) -> io::Result<Vec<u8>> {
    roff(|roff| {
        roff.control("SH", [title]);
        roff.control("nf", []);
        for line in lines {
            roff.text([roman(line.as_str())]);
        }
        roff.control("fi", []);
    })
}

fn see_also(name: &str) -> io::Result<Vec<u8>> {
    let others: Vec<_> = PROGRAMS.iter().filter(|program| **program != name).collect();
    let mut inlines: Vec<Inline> = Vec::new();
    for (number, program) in others.iter().enumerate() {
        let end = if number + 1 < others.len() { "(1), " } else { "(1)" };
        inlines.extend([bold(**program), roman(end)]);
    }
    roff(|roff| {
        roff.control("SH", ["SEE ALSO"]);
        roff.text(inlines);
    })
}

/// One preamble, which every piece brings, and no line that man(1) has no use for.
fn tidy(page: &[u8]) -> Vec<u8> {
    let preamble = Roff::new().render();
    let text = String::from_utf8_lossy(page).replace(&preamble, "");
    let mut lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.dedup_by(|next, line| next == line && *line == ".br");
    let lines: String = lines.into_iter().flat_map(|line| [line, "\n"]).collect();
    (preamble + &lines).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Subcommand;

    const HELP: &str = "\
Examples:
  some web file:web.mig                 save; restore with other file:web.mig

Exit status:
  0  done
  1  not done, and why is said

Signals:
  SIGINT cancels.";

    #[derive(clap::Parser)]
    #[command(name = "vmctl", version = "1.2", about = "Does it.", after_help = HELP)]
    struct Args {
        #[command(subcommand)]
        command: What,
        /// For the other one
        #[arg(long, hide = true)]
        broker: bool,
        /// In words
        #[arg(long, global = true)]
        json: bool,
        /// How much to say
        #[arg(short, long, value_name = "LEVEL")]
        log: Option<String>,
    }

    #[derive(Subcommand)]
    enum What {
        /// End it
        ///
        /// There is more to be said.
        Quit {
            /// The guest
            guest: String,
            /// Even if it's the last
            #[arg(long)]
            force: bool,
            /// Which cards it has
            #[arg(long = "net", value_name = "ID=TAP")]
            nets: Vec<String>,
            /// What the other program is told
            #[arg(last = true, value_name = "OPTION")]
            others: Vec<String>,
        },
    }

    fn text() -> String {
        let command = <Args as clap::CommandFactory>::command();
        String::from_utf8(page(command, &Manual::OF_A_HOST).unwrap()).unwrap()
    }

    #[test]
    fn a_page_has_the_sections_that_people_look_for_in_their_usual_order() {
        let text = text();
        let headings: Vec<_> = text.lines().filter_map(|line| line.strip_prefix(".SH ")).collect();
        assert_eq!(
            headings,
            [
                "NAME",
                "SYNOPSIS",
                "DESCRIPTION",
                "OPTIONS",
                "COMMANDS",
                "\"EXIT STATUS\"",
                "SIGNALS",
                "ENVIRONMENT",
                "FILES",
                "EXAMPLES",
                "\"SEE ALSO\"",
            ]
        );
    }

    #[test]
    fn a_synopsis_has_the_values_of_options_and_says_what_may_be_given_again() {
        let fonts = ["\\fB", "\\fI", "\\fR"];
        let plain = fonts.iter().fold(text(), |text, font| text.replace(font, ""));
        let plain = plain.replace("\\-", "-");
        for line in [
            "vmctl [--json] [-l|--log LEVEL] COMMAND [ARGUMENT]...",
            "vmctl quit [--force] [--net ID=TAP]... GUEST [-- OPTION]...",
        ] {
            assert!(plain.lines().any(|it| it == line), "{line} is not in {plain}");
        }
    }

    #[test]
    fn a_subcommand_is_told_with_its_options_and_refers_to_no_other_page() {
        let text = text();
        let quit = &text[text.find(".SS quit").unwrap()..text.find("EXIT STATUS").unwrap()];
        assert!(quit.contains("\\-\\-force"), "{quit}");
        assert!(quit.contains("There is more to be said."), "{quit}");
        assert!(!quit.contains("json"), "{quit}");
        assert!(!text.contains("vmctl\\-quit"), "{text}");
    }

    #[test]
    fn examples_stay_as_they_are_and_internal_options_are_not_told() {
        let text = text();
        let example = "some web file:web.mig                 save; restore with other file:web.mig";
        assert!(text.lines().any(|line| line == example), "{text}");
        assert!(!text.contains("broker"), "{text}");
    }
}
