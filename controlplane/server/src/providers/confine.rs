//! What keeps a guest that breaks out of QEMU from everything else: a user of its own, and a filter of
//! the system calls that QEMU makes.
//!
//! QEMU begins with the failover's directory for guests as its working directory, as `setpriv` leaves
//! it, and names its files relative to it. So the directories above stay closed to its user.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::unistd::User;
use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat};
use rustix::process::geteuid;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::OnceCell;
use tracing::{info, warn};

use super::process::{self, Launch, Trust};
use super::{INSTALL_HINT, ProviderError};
use crate::db::Process;
use crate::fatal::Fatal;

/// The user that guests run as where nobody says otherwise and it exists.
pub const USER_DEFAULT: &str = "farshore-guest";

/// Starts a program as another user, with that user's groups, and stays in the directory.
const SETPRIV: &str = "setpriv";

/// No calls that are obsolete, give rights, start programs or change others' priorities.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// How long QEMU may take to say whether it takes the sandbox; it needs a tenth of a second.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);

/// What ends a QEMU that came up.
const QUIT: &[u8] = b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"quit\"}\n";

/// A user that guests run as.
#[derive(Debug, Clone, PartialEq, Eq)]
struct GuestUser {
    name: String,
    uid: u32,
    gid: u32,
}

/// How guests are confined.
#[derive(Debug, Default)]
pub struct Confinement {
    user: Option<GuestUser>,
    /// Whether QEMU takes the sandbox, once that is known.
    sandbox: OnceCell<bool>,
}

impl Confinement {
    /// Finds the user that was named, else the default one where that exists and we may become it.
    /// Says which user it is.
    ///
    /// # Errors
    /// `Setting` if the named one does not exist, or only root can do what is asked.
    pub fn find(named: Option<&str>) -> Result<Self, Fatal> {
        let user = find_user(named, geteuid().is_root(), is_installed(SETPRIV.as_ref()))
            .map_err(|why| Fatal::Setting { flag: "--guest-user", why })?;
        match &user {
            Ok(user) => info!(user = user.name, "failed-over machines run as a user of their own"),
            Err(why) => {
                warn!(why, "failed-over machines run as this user: who breaks out of one is us")
            }
        }
        Ok(Self { user: user.ok(), sandbox: OnceCell::new() })
    }

    /// Whether QEMU runs as another user.
    #[must_use]
    pub fn has_user(&self) -> bool {
        self.user.is_some()
    }

    /// Hands a file, socket or directory over to the guests' user. The directory that it lies in must be
    /// ours alone to write.
    ///
    /// # Errors
    /// `File`.
    pub fn hand_over(&self, path: &Path) -> Result<(), ProviderError> {
        let Some(user) = &self.user else { return Ok(()) };
        own(path, Some(Uid::from_raw(user.uid)), user)
    }

    /// Lets the guests' user pass through a directory that stays ours.
    ///
    /// # Errors
    /// `File`.
    pub fn let_through(&self, dir: &Path) -> Result<(), ProviderError> {
        use std::os::unix::fs::PermissionsExt;
        let Some(user) = &self.user else { return Ok(()) };
        own(dir, None, user)?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o710))
            .map_err(|source| ProviderError::file("open to the guests' user", dir, source))
    }

    /// Starts QEMU in `dir`, confined.
    ///
    /// # Errors
    /// `Missing`, `Start`, `File`; `NotReady` if QEMU does not say in time whether it takes the sandbox.
    pub async fn start(
        &self,
        program: &Path,
        arguments: Vec<OsString>,
        dir: &Path,
        log: &Path,
    ) -> Result<Process, ProviderError> {
        if !is_installed(program) {
            return Err(ProviderError::Missing { program: program.into(), hint: INSTALL_HINT });
        }
        let takes_sandbox =
            self.sandbox.get_or_try_init(|| self.probe(program, log)).await.copied()?;
        let mut all = Vec::new();
        if takes_sandbox {
            all.extend(["-sandbox".into(), SANDBOX.into()]);
        }
        all.extend(arguments);
        let (program, arguments) = self.command(program, all);
        process::start(&Launch {
            program: &program,
            arguments: &arguments,
            trust: Trust::Guest,
            dir: Some(dir),
            log,
            hint: INSTALL_HINT,
        })
    }

    /// The command that runs `program` as the guests' user.
    fn command(&self, program: &Path, arguments: Vec<OsString>) -> (PathBuf, Vec<OsString>) {
        let Some(user) = &self.user else { return (program.to_owned(), arguments) };
        let mut all: Vec<OsString> = vec![
            "--reuid".into(),
            user.uid.to_string().into(),
            "--regid".into(),
            user.gid.to_string().into(),
            // Its groups, such as the one that may use KVM.
            "--init-groups".into(),
            "--no-new-privs".into(),
            "--inh-caps=-all".into(),
            "--".into(),
            program.into(),
        ];
        all.extend(arguments);
        (SETPRIV.into(), all)
    }

    /// Whether QEMU takes the sandbox: it comes up with it, without a machine, and is told to quit.
    async fn probe(&self, program: &Path, log: &Path) -> Result<bool, ProviderError> {
        let arguments =
            ["-sandbox", SANDBOX, "-M", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"];
        let (run, arguments) = self.command(program, arguments.map(OsString::from).into());
        let failed = |source| ProviderError::Start { program: program.into(), source };
        let mut qemu = Command::new(run)
            .args(arguments)
            .env_clear()
            .envs(Trust::Guest.environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let asked = async {
            if let Some(mut stdin) = qemu.stdin.take() {
                // One that refuses the sandbox is gone before it reads.
                stdin.write_all(QUIT).await.ok();
            }
            qemu.wait_with_output().await
        };
        let output = tokio::time::timeout(PROBE_TIMEOUT, asked).await.map_err(|_| {
            ProviderError::NotReady { what: "QEMU", waited: PROBE_TIMEOUT, log: log.into() }
        })?;
        let output = output.map_err(failed)?;
        if !output.status.success() {
            let said = process::last_line_of(&output.stderr, 400);
            warn!(said, "this QEMU takes no sandbox: failed-over machines run without");
        }
        Ok(output.status.success())
    }
}

fn own(path: &Path, uid: Option<Uid>, user: &GuestUser) -> Result<(), ProviderError> {
    chownat(CWD, path, uid, Some(Gid::from_raw(user.gid)), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| ProviderError::file("hand to the guests' user", path, error.into()))
}

/// The user; or, where nobody named one, why there is none.
///
/// # Errors
/// Why the named one cannot be had.
fn find_user(
    named: Option<&str>,
    are_root: bool,
    has_setpriv: bool,
) -> Result<Result<GuestUser, String>, String> {
    let name = named.unwrap_or(USER_DEFAULT);
    let found = User::from_name(name).map_err(io::Error::from);
    let user = match found {
        Ok(Some(user)) if user.uid.is_root() => {
            Err(format!("{name} is root, whom nothing confines"))
        }
        Ok(Some(user)) => {
            Ok(GuestUser { name: name.into(), uid: user.uid.as_raw(), gid: user.gid.as_raw() })
        }
        Ok(None) => Err(format!(
            "there is no user {name}; make one with `useradd --system --no-create-home {name}`"
        )),
        Err(error) => Err(format!("the user {name} cannot be looked up: {error}")),
    };
    let user = user.and_then(|user| {
        if !are_root {
            return Err(format!("only root can run them as {name}"));
        }
        if !has_setpriv {
            return Err(format!("{SETPRIV} is not installed; install the package util-linux"));
        }
        Ok(user)
    });
    match (named, user) {
        (Some(_), Err(why)) => Err(why),
        (_, user) => Ok(user),
    }
}

/// Whether a program is there, by its path or in one of the directories of PATH.
#[must_use]
pub fn is_installed(program: &Path) -> bool {
    if program.components().count() > 1 {
        return program.is_file();
    }
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs).any(|dir| dir.join(program).is_file())
}

/// What names all processes of a guest: QEMU's name for it, which nobody else has.
#[must_use]
pub fn marker(dir: &Path) -> OsString {
    let mut name = OsString::from("guest=");
    name.push(super::qemu::escaped(dir.as_os_str()));
    name
}

/// Processes of the guest in `dir`, noted down or not.
///
/// # Errors
/// `File` if that cannot be found out.
pub fn running(dir: &Path) -> Result<Vec<Process>, ProviderError> {
    process::find("-name", OsStr::new(&marker(dir)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn nobody() -> GuestUser {
        find_user(Some("nobody"), true, true).unwrap().unwrap()
    }

    #[test]
    fn a_user_that_was_named_and_cannot_be_had_ends_the_start() {
        let missing = find_user(Some("no-such-user"), true, true).unwrap_err();
        assert!(missing.contains("there is no user no-such-user"), "{missing}");
        let powerless = find_user(Some("nobody"), false, true).unwrap_err();
        assert!(powerless.contains("only root"), "{powerless}");
        let toolless = find_user(Some("nobody"), true, false).unwrap_err();
        assert!(toolless.contains("util-linux"), "{toolless}");
        let mighty = find_user(Some("root"), true, true).unwrap_err();
        assert!(mighty.contains("is root"), "{mighty}");
    }

    #[test]
    fn without_a_name_the_default_user_is_taken_or_its_absence_told() {
        match find_user(None, true, true).unwrap() {
            Ok(user) => assert_eq!(user.name, USER_DEFAULT),
            Err(why) => assert!(why.contains("useradd"), "{why}"),
        }
        assert!(find_user(None, false, true).unwrap().is_err());
    }

    #[test]
    fn a_guest_is_given_its_groups_and_no_rights() {
        let user = nobody();
        let uid = user.uid.to_string();
        let confinement = Confinement { user: Some(user), ..Confinement::default() };
        let (program, arguments) = confinement.command(Path::new("/q"), vec!["-m".into()]);
        assert_eq!(program, Path::new(SETPRIV));
        assert!(arguments.windows(2).any(|pair| pair[0] == "--reuid" && pair[1] == *uid));
        for flag in ["--init-groups", "--no-new-privs", "--inh-caps=-all"] {
            assert!(arguments.iter().any(|argument| argument == flag), "{flag}");
        }
        assert_eq!(arguments[arguments.len() - 3..], ["--", "/q", "-m"]);
        let (program, arguments) =
            Confinement::default().command(Path::new("/q"), vec!["-m".into()]);
        assert_eq!((program.as_path(), arguments), (Path::new("/q"), vec!["-m".into()]));
    }

    #[tokio::test]
    async fn a_qemu_that_refuses_the_sandbox_runs_without_and_is_asked_once() {
        let dir = tempfile::tempdir().unwrap();
        let (program, log) = (dir.path().join("qemu"), dir.path().join("log"));
        let script = "#!/bin/sh\necho \"$*\" >>\"$0.asked\"\n\
                      case \"$*\" in *sandbox*) echo 'no seccomp' >&2; exit 1;; esac\n";
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let confinement = Confinement::default();
        for _ in 0..2 {
            let process =
                confinement.start(&program, vec!["-m".into()], dir.path(), &log).await.unwrap();
            process::stop(process).await.unwrap();
        }
        let asked = std::fs::read_to_string(dir.path().join("qemu.asked")).unwrap();
        let asked: Vec<&str> = asked.lines().collect();
        assert!(asked[0].starts_with("-sandbox on,obsolete=deny"), "{asked:?}");
        assert!(asked[1..].iter().all(|line| *line == "-m"), "{asked:?}");
    }

    #[test]
    fn what_is_handed_over_is_the_guests_and_a_link_is_not_followed() {
        if !geteuid().is_root() {
            println!("not tried: only root can give files away");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("ours"), dir.path().join("link"));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let user = nobody();
        let uid = user.uid;
        let confinement = Confinement { user: Some(user), ..Confinement::default() };
        confinement.hand_over(&link).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().uid(), 0);
        assert_eq!(std::fs::symlink_metadata(&link).unwrap().uid(), uid);
        confinement.let_through(dir.path()).unwrap();
        let metadata = std::fs::metadata(dir.path()).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o777), (0, 0o710));
    }
}
