//! The firmware that machines boot with.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

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
    /// The named file, else what is installed.
    ///
    /// # Errors
    /// `Missing`.
    pub fn find(named: Option<&str>) -> Result<Self, ProviderError> {
        if let Some(named) = named {
            return Self::of(Path::new(named));
        }
        let mut installed = COMBINED.iter().chain(&CODE).map(Path::new);
        let found = installed.find_map(|path| Self::of(path).ok());
        found.ok_or_else(|| ProviderError::Missing { program: COMBINED[0].into(), hint: HINT })
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
        let error = Firmware::find(Some("/nowhere/fw.fd")).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/fw.fd is not installed"), "{error}");
    }

    #[test]
    fn code_goes_with_the_variables_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let code = dir.path().join("OVMF_CODE_4M.fd");
        fs::write(&code, "code").unwrap();
        let error = Firmware::find(code.to_str()).unwrap_err();
        assert!(error.to_string().contains("OVMF_VARS_4M.fd is not installed"), "{error}");
        let variables = dir.path().join("OVMF_VARS_4M.fd");
        fs::write(&variables, "variables").unwrap();
        let firmware = Firmware::find(code.to_str()).unwrap();
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
}
