//! `ssh:[USER@]HOST[/NAME]`: a mig-recv that ssh starts on another host.
//!
//! ssh is started with a list of arguments, so no shell of this host reads any of it. On the other
//! host the user's shell reads the command that ssh passes on, which is quoted for it.
#![forbid(unsafe_code)]

use std::fmt;
use std::process::{Command, ExitStatus};

/// A mig-recv on another host, and how ssh gets there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ssh {
    /// Who logs in; without it, whoever ssh's configuration says.
    pub user: Option<String>,
    /// The host: a name, an address, or what ssh's configuration calls it.
    pub host: String,
    /// What the guest is to be called there; without it, as here.
    pub guest: Option<String>,
    /// Options of ssh, as its `-o` takes them.
    pub options: Vec<String>,
    /// The program to be run there.
    pub program: String,
    /// Its arguments, beside the name of the guest.
    pub arguments: Vec<String>,
}

/// What ssh is told beside the user's own options, which come first: of two values for one option ssh
/// takes the first.
///
/// A connection that is dead is noticed within 40 s, and one that cannot be made within 10 s: both
/// before mig-send itself gives up, so that ssh says what was wrong. The rest keeps out what the
/// user's configuration may have for a login: forwardings whose ports are taken, a command of its
/// own, and becoming the master of other connections, which would outlive the migration.
const OPTIONS: [&str; 8] = [
    "ConnectTimeout=10",
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "ControlMaster=no",
];

/// Characters that ssh refuses in a host or a user, since its configuration may hand them to a shell.
const SPECIAL: &str = "'`\"$\\;&<>|(){},";

/// The status with which ssh ends for reasons of its own.
const SSH_FAILED: i32 = 255;

impl Ssh {
    /// The program that is run on the other host unless another is named.
    pub const PROGRAM: &str = "mig-recv";

    /// Reads what stands behind `ssh:`.
    pub(crate) fn parse(params: &str) -> Result<Self, &'static str> {
        let (address, guest) = match params.split_once('/') {
            Some((address, guest)) => (address, Some(guest)),
            None => (params, None),
        };
        let (user, host) = match address.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, address),
        };
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or("the bracket is not closed")?,
            None => match host.matches(':').count() {
                0 => host,
                1 => return Err("a port is an option of ssh: --ssh-option Port=N"),
                _ => return Err("an IPv6 address needs brackets: [::1]"),
            },
        };
        if host.is_empty() {
            return Err("the host is missing");
        }
        if user == Some("") {
            return Err("the user is missing in front of the @");
        }
        if guest.is_some_and(|guest| guest.is_empty() || guest.contains('/')) {
            return Err("what is behind the / is no name of a guest");
        }
        for word in [Some(host), user].into_iter().flatten() {
            let odd = |c: char| c.is_whitespace() || c.is_control() || SPECIAL.contains(c);
            if word.starts_with('-') || word.contains(odd) {
                return Err("ssh takes no such host or user");
            }
        }
        Ok(Self {
            user: user.map(str::to_owned),
            host: host.to_owned(),
            guest: guest.map(str::to_owned),
            options: Vec::new(),
            program: Self::PROGRAM.to_owned(),
            arguments: Vec::new(),
        })
    }

    /// Whether nothing but a host, a user and the name of a guest was said.
    pub fn is_plain(&self) -> bool {
        self.options.is_empty() && self.program == Self::PROGRAM && self.arguments.is_empty()
    }

    /// The ssh to be started. Where there is no terminal it asks nothing, and fails instead.
    pub(crate) fn command(&self, has_terminal: bool) -> Command {
        let mut ssh = Command::new("ssh");
        let batch = if has_terminal { None } else { Some("BatchMode=yes") };
        let own = OPTIONS.into_iter().chain(batch);
        for option in self.options.iter().map(String::as_str).chain(own) {
            ssh.arg("-o").arg(option);
        }
        // Neither a terminal nor X11 there.
        ssh.args(["-T", "-x"]);
        if let Some(user) = &self.user {
            ssh.args(["-l", user]);
        }
        ssh.arg("--").arg(&self.host).arg(self.remote());
        ssh
    }

    /// The command as the shell of the other host reads it.
    fn remote(&self) -> String {
        let name = self.guest.as_ref().map(|guest| format!("--name={guest}"));
        let words = [&self.program].into_iter().chain(&name).chain(&self.arguments);
        // Only a NUL cannot be quoted, and no argument has one.
        words.map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
    }

    /// What it means that ssh ended with this status, where it is not that of mig-recv.
    ///
    /// `proved` says that the other host had answered, or taken data, before.
    pub(crate) fn meaning(&self, status: ExitStatus, proved: bool) -> Option<String> {
        let Self { host, program, .. } = self;
        match status.code()? {
            SSH_FAILED if proved => Some("lost the connection (status 255)".to_owned()),
            SSH_FAILED => Some(format!(
                "could not reach it, does not trust its host key, or could not log in (status 255; \
                 its own message says which): 'ssh {}{host} true' must do without a question \
                 where there is no terminal",
                self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default()
            )),
            127 if program.contains('/') => Some(format!("found no {program} there (status 127)")),
            127 => Some(format!(
                "found no {program} there (status 127): it is not installed, or not in the PATH that \
                 a shell has there without a login; name it as --recv-path /usr/local/bin/mig-recv"
            )),
            126 => Some(format!("may not run {program} there (status 126)")),
            _ => None,
        }
    }
}

/// `word` as a POSIX shell reads it back.
fn quoted(word: &str) -> String {
    shlex::try_quote(word).map_or_else(|_| word.to_owned(), std::borrow::Cow::into_owned)
}

impl fmt::Display for Ssh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host)?,
            false => f.write_str(&self.host)?,
        }
        match &self.guest {
            Some(guest) => write!(f, "/{guest}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn ssh(text: &str) -> Ssh {
        Ssh::parse(text).unwrap()
    }

    fn arguments(ssh: &Ssh, has_terminal: bool) -> Vec<String> {
        let command = ssh.command(has_terminal);
        command.get_args().map(|arg| arg.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_host_is_read_with_its_user_and_the_name_of_the_guest() {
        for (text, user, host, guest) in [
            ("hostb", None, "hostb", None),
            ("root@hostb", Some("root"), "hostb", None),
            ("hostb/w2", None, "hostb", Some("w2")),
            ("a@corp@hostb/w2", Some("a@corp"), "hostb", Some("w2")),
            ("root@[fe80::1%eth0]/w2", Some("root"), "fe80::1%eth0", Some("w2")),
        ] {
            let read = ssh(text);
            assert_eq!(read.user.as_deref(), user, "{text}");
            assert_eq!(read.host, host, "{text}");
            assert_eq!(read.guest.as_deref(), guest, "{text}");
            assert_eq!(read.to_string(), text);
        }
    }

    #[test]
    fn what_ssh_would_take_for_an_option_or_hand_to_a_shell_is_no_host() {
        for text in [
            "",
            "/w2",
            "@hostb",
            "hostb/",
            "hostb/a/b",
            "hostb:22",
            "::1",
            "[::1",
            "-oProxyCommand=id",
            "-l@hostb",
            "root@-v",
            "a b",
            "`id`",
            "$(id)",
            "host;id",
            "a'b@hostb",
        ] {
            assert!(Ssh::parse(text).is_err(), "{text}");
        }
        assert!(Ssh::parse("hostb:22").unwrap_err().contains("--ssh-option Port="));
    }

    #[test]
    fn options_of_the_user_come_first_and_the_host_is_no_option() {
        let ssh = Ssh { options: vec!["Port=2222".into()], ..ssh("root@hostb") };
        let arguments = arguments(&ssh, true);
        assert_eq!(arguments[..2], ["-o", "Port=2222"]);
        let end = ["-T", "-x", "-l", "root", "--", "hostb", "mig-recv"];
        assert_eq!(arguments[arguments.len() - end.len()..], end);
        assert!(arguments.iter().any(|it| it == "ServerAliveInterval=10"), "{arguments:?}");
    }

    #[test]
    fn ssh_asks_a_question_only_where_there_is_a_terminal() {
        let batch = |has_terminal| {
            arguments(&ssh("hostb"), has_terminal).iter().any(|it| it == "BatchMode=yes")
        };
        assert!(batch(false) && !batch(true));
    }

    #[test]
    fn the_shell_of_the_other_host_reads_each_argument_as_it_was_given() {
        let given = ["--files-in", "/srv/a b", "it's", "$HOME `id` ;", "", "--net=net0=tap7"];
        let ssh = Ssh {
            program: "printf".into(),
            arguments: ["<%s>"].iter().chain(&given).map(|it| (*it).to_owned()).collect(),
            ..ssh("hostb")
        };
        let remote = arguments(&ssh, false).pop().unwrap();
        let read = Command::new("sh").args(["-c", &remote]).output().unwrap();
        let expected: String = given.iter().map(|it| format!("<{it}>")).collect();
        assert_eq!(String::from_utf8(read.stdout).unwrap(), expected, "{remote}");
        let named = Ssh::parse("hostb/w2").unwrap().remote();
        let words = shlex::split(&named).unwrap();
        assert_eq!(words, ["mig-recv", "--name=w2"]);
    }

    #[test]
    fn what_ssh_ends_with_is_told_from_what_mig_recv_ends_with() {
        let meaning = |ssh: &Ssh, code: i32, proved| {
            ssh.meaning(ExitStatus::from_raw(code << 8), proved).unwrap_or_default()
        };
        let plain = ssh("root@hostb");
        assert!(meaning(&plain, 255, false).contains("'ssh root@hostb true'"));
        assert!(meaning(&plain, 255, true).contains("lost the connection"));
        assert!(meaning(&plain, 127, false).contains("--recv-path"));
        let named = Ssh { program: "/opt/mig-recv".into(), ..plain.clone() };
        let said = meaning(&named, 127, false);
        assert!(said.contains("no /opt/mig-recv") && !said.contains("--recv-path"), "{said}");
        for of_mig_recv in [1, 2, 4] {
            assert_eq!(meaning(&plain, of_mig_recv, false), "");
        }
        assert_eq!(plain.meaning(ExitStatus::from_raw(9), false), None);
    }
}
