//! Debian's cloud kernel: from /boot when it is installed, else from its package, which is only
//! unpacked, so that this machine's own boot stays as it is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::repo;

const META_PACKAGE: &str = "linux-image-cloud-amd64";
const SUFFIX: &str = "-cloud-amd64";

/// A kernel and where its modules lie.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Such as `6.1.0-42-cloud-amd64`.
    pub(crate) version: String,
    /// The kernel itself.
    pub(crate) image: PathBuf,
    modules: PathBuf,
}

/// Finds the kernel; downloads its package into `parts` when it is neither installed nor there.
///
/// # Errors
/// If there is none and apt cannot download it.
pub(crate) fn find(parts: &Path) -> Result<Kernel> {
    let unpacked = parts.join("kernel");
    if let Some(kernel) = below(Path::new("/")).or_else(|| below(&unpacked)) {
        return Ok(kernel);
    }
    println!("downloading the package of Debian's cloud kernel (nothing is installed)");
    let dependencies = repo::text(Command::new("apt-cache").args(["depends", META_PACKAGE]))?;
    let package = dependencies
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .with_context(|| format!("apt knows no {META_PACKAGE}; run `apt-get update` as root"))?;
    let download = parts.join("download");
    fs::create_dir_all(&download).with_context(|| format!("create {}", download.display()))?;
    repo::output(Command::new("apt-get").args(["download", package]).current_dir(&download))?;
    let packages = files(&download)?;
    let file = packages.first().context("apt-get download left no package")?;
    repo::check(Command::new("dpkg-deb").arg("-x").arg(file).arg(&unpacked))?;
    fs::remove_dir_all(&download).with_context(|| format!("remove {}", download.display()))?;
    below(&unpacked).with_context(|| format!("{package} holds no kernel"))
}

/// The newest cloud kernel below a root folder that has its modules and can be read.
fn below(root: &Path) -> Option<Kernel> {
    let mut images = files(&root.join("boot")).ok()?;
    images.sort();
    images.into_iter().rev().find_map(|image| {
        let name = image.file_name()?.to_str()?;
        let version = name.strip_prefix("vmlinuz-").filter(|name| name.ends_with(SUFFIX))?;
        let modules = ["lib/modules", "usr/lib/modules"]
            .map(|folder| root.join(folder).join(version))
            .into_iter()
            .find(|folder| folder.is_dir())?;
        fs::File::open(&image).ok()?;
        Some(Kernel { version: version.to_owned(), image: image.clone(), modules })
    })
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    list.map(|entry| Ok(entry?.path())).collect()
}

impl Kernel {
    /// The modules in `wanted` and all they depend on, in loading order, unpacked. What is built
    /// into the kernel is left out.
    ///
    /// # Errors
    /// If a module is neither built in nor there.
    pub(crate) fn modules(&self, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let built_in = fs::read_to_string(self.modules.join("modules.builtin"))
            .context("read the list of what is built into the kernel")?;
        let mut known: BTreeMap<String, Option<PathBuf>> = BTreeMap::new();
        for line in built_in.lines() {
            known.insert(module_name(Path::new(line)), None);
        }
        self.index(&self.modules.join("kernel"), &mut known)?;
        let mut order = Vec::new();
        for name in wanted {
            load_after_its_dependencies(name, &known, &mut order)?;
        }
        Ok(order)
    }

    fn index(&self, folder: &Path, known: &mut BTreeMap<String, Option<PathBuf>>) -> Result<()> {
        for path in files(folder)? {
            if path.is_dir() {
                self.index(&path, known)?;
            } else if path.to_string_lossy().contains(".ko") {
                known.insert(module_name(&path), Some(path));
            }
        }
        Ok(())
    }
}

fn load_after_its_dependencies(
    name: &str,
    known: &BTreeMap<String, Option<PathBuf>>,
    order: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    if order.iter().any(|(loaded, _)| loaded == name) {
        return Ok(());
    }
    let Some(place) = known.get(name) else { bail!("the kernel has no module {name}") };
    let Some(path) = place else { return Ok(()) };
    let bytes = unpack(path)?;
    for dependency in dependencies(&bytes) {
        load_after_its_dependencies(&dependency, known, order)?;
    }
    order.push((name.to_owned(), bytes));
    Ok(())
}

/// `kernel/drivers/block/virtio_blk.ko.xz` is `virtio_blk`; `-` and `_` mean the same.
fn module_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split(".ko").next().unwrap_or_default().replace('-', "_")
}

fn unpack(path: &Path) -> Result<Vec<u8>> {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("xz") => repo::output(Command::new("xz").arg("-dc").arg(path)),
        Some("zst") => repo::output(Command::new("zstd").arg("-dcq").arg(path)),
        _ => fs::read(path).with_context(|| format!("read {}", path.display())),
    }
}

/// The names in the module's own `depends=` field, which is there without running depmod.
fn dependencies(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let Some(at) = module.windows(FIELD.len()).position(|window| window == FIELD) else {
        return Vec::new();
    };
    let value = module[at + FIELD.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value).replace('-', "_");
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_module_depends_on() {
        let module = b"\x7fELF..license=GPL\0depends=virtio,virtio-ring\0name=virtio_blk\0";
        assert_eq!(dependencies(module), ["virtio", "virtio_ring"]);
        assert!(dependencies(b"\x7fELF..\0depends=\0").is_empty());
    }

    #[test]
    fn names_a_module_by_its_file() {
        assert_eq!(module_name(Path::new("a/crc32c-intel.ko.xz")), "crc32c_intel");
    }
}
