//! What `ssh:` takes beside the host.

use anyhow::anyhow;
use clap::Args;
use mig_channel::{Endpoint, Ssh};

/// The options of `ssh:`.
#[derive(Args, Clone, Debug, Default)]
pub struct SshArgs {
    /// An option of ssh for ssh:, as its -o takes it, such as Port=2222; once for each
    #[arg(long = "ssh-option", value_name = "OPTION")]
    pub options: Vec<String>,
    /// The mig-recv on the host of ssh:, where a shell without a login does not find it
    #[arg(long = "recv-path", value_name = "PATH", value_parser = program)]
    pub program: Option<String>,
    /// Options of the mig-recv on the host of ssh:, as they are, such as -- --files-in /srv/guests
    #[arg(last = true, value_name = "RECV-OPTION")]
    pub recv: Vec<String>,
}

impl SshArgs {
    /// Whether one was given.
    fn are_given(&self) -> bool {
        !(self.options.is_empty() && self.program.is_none() && self.recv.is_empty())
    }

    /// Gives them to each of `destinations` that they are for.
    ///
    /// # Errors
    /// Wrong usage: they are for none of them, or a guest cannot be called so.
    pub fn apply(&self, destinations: [Option<&mut Endpoint>; 2]) -> anyhow::Result<()> {
        let mut taken = false;
        for destination in destinations.into_iter().flatten() {
            let Endpoint::Ssh(ssh) = destination else { continue };
            if let Some(guest) = &ssh.guest {
                vm_paths::check_name(guest).map_err(migpipe_cli::usage)?;
            }
            ssh.options.clone_from(&self.options);
            if let Some(program) = &self.program {
                ssh.program.clone_from(program);
            }
            ssh.arguments.clone_from(&self.recv);
            taken = true;
        }
        match taken || !self.are_given() {
            true => Ok(()),
            false => Err(migpipe_cli::usage(anyhow!(
                "--ssh-option, --recv-path and what stands behind -- are for ssh:HOST alone"
            ))),
        }
    }
}

/// The arguments that lead to `destination` once more, so that it can be asked: DEST first. What its
/// mig-recv was told beside that is no matter of a query.
pub fn arguments(destination: &Endpoint) -> Vec<String> {
    let mut arguments = vec![destination.to_string()];
    if let Endpoint::Ssh(ssh) = destination {
        arguments.extend(ssh.options.iter().map(|option| format!("--ssh-option={option}")));
        if ssh.program != Ssh::PROGRAM {
            arguments.push(format!("--recv-path={}", ssh.program));
        }
    }
    arguments
}

fn program(text: &str) -> Result<String, String> {
    // It is quoted for the shell there.
    if text.is_empty() || text.starts_with(['-', '~']) {
        return Err(
            "write its whole path there, or one from the home directory: bin/mig-recv".into()
        );
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        destination: Endpoint,
        #[command(flatten)]
        ssh: SshArgs,
    }

    fn read(words: &[&str]) -> anyhow::Result<Endpoint> {
        let mut line = Line::try_parse_from([&["x"], words].concat())?;
        line.ssh.apply([Some(&mut line.destination), None])?;
        Ok(line.destination)
    }

    #[test]
    fn what_is_given_beside_the_host_goes_to_ssh_and_to_its_mig_recv() {
        let words = ["ssh:hostb", "--ssh-option", "Port=1", "--recv-path=/opt/mig-recv"];
        let read = read(&[&words[..], &["--", "--files-in", "/srv/a b"]].concat()).unwrap();
        let Endpoint::Ssh(ssh) = &read else { panic!("{read}") };
        assert_eq!(ssh.options, ["Port=1"]);
        assert_eq!(ssh.program, "/opt/mig-recv");
        assert_eq!(ssh.arguments, ["--files-in", "/srv/a b"]);
        assert_eq!(
            arguments(&read),
            ["ssh:hostb", "--ssh-option=Port=1", "--recv-path=/opt/mig-recv"]
        );
    }

    #[test]
    fn what_leads_to_a_destination_is_read_back_as_the_same() {
        for words in [
            &["tcp:hostb:1"][..],
            &["exec:ssh hostb mig-recv"],
            &["ssh:root@hostb/w2"],
            &["ssh:hostb", "--ssh-option=ProxyJump=a b", "--recv-path=bin/mig-recv"],
        ] {
            let first = read(words).unwrap();
            let again: Vec<_> = arguments(&first);
            let again: Vec<_> = again.iter().map(String::as_str).collect();
            assert_eq!(read(&again).unwrap(), first);
        }
    }

    #[test]
    fn options_of_ssh_for_another_channel_and_a_bad_name_are_wrong_usage() {
        for words in [
            &["tcp:hostb:1", "--ssh-option", "Port=1"][..],
            &["exec:true", "--", "--files-in", "/srv"],
            &["file:a.mig", "--recv-path", "/opt/mig-recv"],
            &["ssh:hostb/.w2"],
            &["ssh:hostb/a b"],
        ] {
            let error = read(words).unwrap_err();
            assert!(migpipe_cli::is_usage(&error), "{words:?}: {error}");
        }
        assert!(read(&["ssh:hostb", "--recv-path", "~/bin/mig-recv"]).is_err());
    }
}
