//! The firmware that machines boot with.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use crate::providers::ProviderError;

/// Where distributions put it, each the code with variables in it. They are preferred: nothing has
/// to be kept beside the machine.
const COMBINED: [&str; 4] = [
    "/usr/share/ovmf/OVMF.fd",
    "/usr/share/OVMF/OVMF.fd",
    "/usr/share/qemu/OVMF.fd",
    "/usr/share/edk2/ovmf/OVMF.fd",
];

/// Where distributions put the code apart from its variables.
const CODE: [&str; 4] = [
    "/usr/share/OVMF/OVMF_CODE_4M.fd",
    "/usr/share/OVMF/OVMF_CODE.fd",
    "/usr/share/edk2/ovmf/OVMF_CODE.fd",
    "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
];

const HINT: &str = "it is the firmware: install the Debian package ovmf, or name another file";
const VARIABLES_HINT: &str =
    "it holds the variables of the firmware beside it; install it, or name a firmware in one file";

/// Firmware images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Firmware {
    /// Code and variables in one file; what a machine writes to its variables ends with it.
    Combined(PathBuf),
    /// Code, and the variables that a new machine begins with.
    Split {
        /// Used as it is by all machines.
        code: PathBuf,
        /// Copied for each machine.
        variables: PathBuf,
    },
}

impl Firmware {
    /// The named file, which lies in the operator's directory, else what is installed.
    ///
    /// # Errors
    /// `Missing`; `Firmware` for a file that may not be used.
    pub fn find(named: Option<&str>, dir: Option<&Path>) -> Result<Self, ProviderError> {
        if let Some(named) = named {
            let named = Path::new(named);
            let refused = |why| ProviderError::Firmware { path: named.into(), why };
            may_be_named(named, dir).map_err(refused)?;
            let firmware = Self::of(named)?;
            if let Some(dir) = dir.filter(|dir| named.starts_with(dir)) {
                firmware.stays_in(dir).map_err(refused)?;
            }
            return Ok(firmware);
        }
        let mut installed = installed();
        let found = installed.find_map(|path| Self::of(path).ok());
        found.ok_or_else(|| ProviderError::Missing { program: COMBINED[0].into(), hint: HINT })
    }

    /// Whether no link leads out of the operator's directory.
    fn stays_in(&self, dir: &Path) -> Result<(), String> {
        let images = match self {
            Self::Combined(image) => vec![image],
            Self::Split { code, variables } => vec![code, variables],
        };
        let real = |path: &Path| {
            path.canonicalize().map_err(|error| format!("cannot be followed: {error}"))
        };
        for image in images {
            if !real(image)?.starts_with(real(dir)?) {
                return Err(format!(
                    "is a link that leads out of {}; put the image itself there",
                    dir.display()
                ));
            }
        }
        Ok(())
    }

    /// A file whose name speaks of code has its variables beside it.
    fn of(path: &Path) -> Result<Self, ProviderError> {
        let missing = |path: &Path, hint| ProviderError::Missing { program: path.into(), hint };
        if !path.is_file() {
            return Err(missing(path, HINT));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.contains("CODE") {
            return Ok(Self::Combined(path.into()));
        }
        let variables = path.with_file_name(name.replace("CODE", "VARS"));
        if !variables.is_file() {
            return Err(missing(&variables, VARIABLES_HINT));
        }
        Ok(Self::Split { code: path.into(), variables })
    }

    /// Makes what a machine needs of its own, unless it is there: its variables, at `own`.
    ///
    /// # Errors
    /// `File`.
    pub fn prepare(&self, own: &Path) -> Result<(), ProviderError> {
        let Self::Split { variables, .. } = self else { return Ok(()) };
        let content =
            fs::read(variables).map_err(|error| ProviderError::file("read", variables, error))?;
        let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(own);
        match created.and_then(|mut file| file.write_all(&content)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(ProviderError::file("write", own, error))
            }
            _ => Ok(()),
        }
    }

    /// QEMU's arguments for a machine with its variables at `own`.
    #[must_use]
    pub fn arguments(&self, own: &Path) -> Vec<OsString> {
        match self {
            Self::Combined(path) => vec!["-bios".into(), path.into()],
            Self::Split { code, .. } => vec![
                "-drive".into(),
                flash("unit=0,readonly=on", code),
                "-drive".into(),
                flash("unit=1", own),
            ],
        }
    }
}

fn installed() -> impl Iterator<Item = &'static Path> {
    COMBINED.iter().chain(&CODE).map(Path::new)
}

/// Whether a failover may name this firmware, as far as its name tells: nothing is looked at, so that
/// nobody learns here what else there is on this machine.
///
/// # Errors
/// Why not, and what to do.
pub fn may_be_named(named: &Path, dir: Option<&Path>) -> Result<(), String> {
    if installed().any(|path| path == named) {
        return Ok(());
    }
    let Some(dir) = dir else {
        return Err("may not be used: the control plane was started without --firmware-dir, the \
                    directory that firmware may be taken from"
            .into());
    };
    let is_plain = named.components().all(|part| !matches!(part, Component::ParentDir));
    if is_plain && named.starts_with(dir) && named != dir {
        return Ok(());
    }
    Err(format!("may not be used: it does not lie in {}; put it there", dir.display()))
}

fn flash(options: &str, file: &Path) -> OsString {
    let mut flash = OsString::from(format!("if=pflash,format=raw,{options},file="));
    flash.push(super::escaped(file.as_os_str()));
    flash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_firmware_is_named() {
        let nowhere = Some(Path::new("/nowhere"));
        let error = Firmware::find(Some("/nowhere/fw.fd"), nowhere).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/fw.fd is not installed"), "{error}");
    }

    #[test]
    fn code_goes_with_the_variables_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let code = dir.path().join("OVMF_CODE_4M.fd");
        fs::write(&code, "code").unwrap();
        let error = Firmware::find(code.to_str(), Some(dir.path())).unwrap_err();
        assert!(error.to_string().contains("OVMF_VARS_4M.fd is not installed"), "{error}");
        let variables = dir.path().join("OVMF_VARS_4M.fd");
        fs::write(&variables, "variables").unwrap();
        let firmware = Firmware::find(code.to_str(), Some(dir.path())).unwrap();
        assert_eq!(firmware, Firmware::Split { code, variables });

        let own = dir.path().join("own,1.fd");
        firmware.prepare(&own).unwrap();
        assert_eq!(fs::read(&own).unwrap(), b"variables");
        fs::write(&own, "changed by the machine").unwrap();
        firmware.prepare(&own).unwrap();
        assert_eq!(fs::read(&own).unwrap(), b"changed by the machine", "kept at another start");
        let last = firmware.arguments(&own).pop().unwrap();
        assert!(last.to_string_lossy().ends_with("own,,1.fd"), "{last:?}");
    }

    #[test]
    fn firmware_comes_from_the_operators_directory_or_the_system_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (images, secret) = (dir.path().join("images"), dir.path().join("ca.key"));
        fs::create_dir(&images).unwrap();
        fs::write(&secret, "key").unwrap();
        fs::write(images.join("own.fd"), "own").unwrap();
        std::os::unix::fs::symlink(&secret, images.join("link.fd")).unwrap();
        std::os::unix::fs::symlink("own.fd", images.join("near.fd")).unwrap();
        fs::write(images.join("A_CODE.fd"), "code").unwrap();
        std::os::unix::fs::symlink(&secret, images.join("A_VARS.fd")).unwrap();
        let find = |name: PathBuf, dir| Firmware::find(name.to_str(), dir);
        let open = Some(images.as_path());
        for good in ["own.fd", "near.fd"] {
            find(images.join(good), open).unwrap();
        }
        for bad in ["link.fd", "A_CODE.fd"] {
            let error = find(images.join(bad), open).unwrap_err();
            assert!(error.to_string().contains("leads out of"), "{error}");
        }
        for bad in [secret.clone(), images.join("../ca.key"), images.clone(), "/etc/shadow".into()]
        {
            let error = find(bad.clone(), open).unwrap_err();
            assert!(error.to_string().contains("does not lie in"), "{error}");
            let error = find(bad, None).unwrap_err();
            assert!(error.to_string().contains("--firmware-dir"), "{error}");
        }
        // What is not there is told as what is.
        let there = find(secret, open).unwrap_err().to_string();
        let absent = find(dir.path().join("ca.kez"), open).unwrap_err().to_string();
        assert_eq!(there.replace("ca.key", "X"), absent.replace("ca.kez", "X"));
        assert!(may_be_named(Path::new(COMBINED[0]), None).is_ok(), "it would be taken anyway");
    }
}
