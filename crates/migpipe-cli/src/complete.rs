//! Shell completions.
//!
//! The script that a shell loads asks the program itself at each TAB, through an environment
//! variable: so what is offered is what this very version takes, and names of guests are those of
//! this moment.

use std::io;

use clap::Command;
use clap_complete::Shell;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};

use crate::Program;

/// The variable by which a shell asks. Of our own: another program's must not keep a guest here.
const VARIABLE: &str = "MIGPIPE_COMPLETE";

/// Offers what `names` returns for the value of an option or argument. It is called at a TAB, so it
/// is quick and says nothing.
pub fn candidates(names: fn() -> Vec<String>) -> ArgValueCandidates {
    ArgValueCandidates::new(move || {
        names().into_iter().map(CompletionCandidate::new).collect::<Vec<_>>()
    })
}

/// Answers a shell, if one asks.
pub(crate) fn answer<P: Program>() -> bool {
    if std::env::var_os(VARIABLE).is_none() {
        return false;
    }
    let here = std::env::current_dir().ok();
    let command = || shown(&P::command());
    let asked = CompleteEnv::with_factory(command).var(VARIABLE);
    // A shell has no use for an error.
    asked.try_complete(std::env::args_os(), here.as_deref()).unwrap_or(true)
}

/// What `shell` is to load.
pub(crate) fn script<P: Program>(shell: Shell) -> io::Result<Vec<u8>> {
    let command = P::command();
    let name = command.get_name();
    let mut script = Vec::new();
    let shells = Shells::builtins();
    let adapter = shells.completer(&shell.to_string()).ok_or(io::ErrorKind::Unsupported)?;
    adapter.write_registration(VARIABLE, name, name, name, &mut script)?;
    if shell == Shell::Zsh {
        // Loaded by the first TAB after the name, it is to answer that too.
        let function = name.replace('-', "_");
        script.extend_from_slice(
            format!(
                "if [ \"$funcstack[1]\" = \"_{name}\" ]; then\n    \
                 _clap_dynamic_completer_{function} \"$@\"\nfi\n"
            )
            .as_bytes(),
        );
    }
    Ok(script)
}

/// `command` without what is not for people, which is offered where nothing else fits otherwise.
fn shown(command: &Command) -> Command {
    Command::new(command.get_name().to_owned())
        .args(command.get_arguments().filter(|arg| !arg.is_hide_set()).cloned())
        .subcommands(command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned())
        .version(command.get_version().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Arg;

    #[test]
    fn what_is_hidden_is_not_offered_even_where_nothing_else_fits() {
        let command = Command::new("some")
            .arg(Arg::new("broker").long("broker").hide(true))
            .arg(Arg::new("guest").add(candidates(|| vec!["web".to_owned(), "db".to_owned()])));
        let offered = |word: &str| -> Vec<String> {
            let words = vec!["some".into(), word.into()];
            let found = clap_complete::engine::complete(&mut shown(&command), words, 1, None);
            let found = found.unwrap().into_iter();
            found.map(|one| one.get_value().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(offered("--br"), [""; 0]);
        assert_eq!(offered("w"), ["web"]);
        assert_eq!(offered("--vers"), ["--version"]);
    }
}
