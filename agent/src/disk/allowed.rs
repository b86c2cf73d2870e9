//! Which disks of this server the agent may capture at all.
//!
//! The list is the server's own: whoever has taken over the control plane can order the capture of any
//! disk, and so read or write any file that root can, but not change what stands here.

use super::DiskError;
use glob::{MatchOptions, Pattern};
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Most patterns of one agent.
const PATTERNS_MAX: usize = 1_024;

/// `*` and `?` do not reach over a slash; `**` does.
const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// Why a list of allowed disks cannot be used. The text is for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AllowError {
    /// A pattern that no path can match.
    #[error(
        "`{pattern}` names no disks: {why}; say a path, where * and ? stand for any characters"
    )]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong.
        why: String,
    },
    /// The file cannot be read.
    #[error("cannot read {}, which says which disks may be captured: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// More than is looked through for each disk.
    #[error("{PATTERNS_MAX} patterns of allowed disks are the most; use * and ?")]
    Many,
}

/// The disks that may be captured: all, or those that some pattern fits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    patterns: Option<Vec<Pattern>>,
}

impl Allowed {
    /// What the command line says, and the file, one pattern a line, if there is one. All disks if
    /// neither says anything; none if the file is there and empty.
    ///
    /// # Errors
    /// [`AllowError`].
    pub fn find(given: &[String], file: &Path) -> Result<Self, AllowError> {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(AllowError::File { path: file.to_owned(), source }),
        };
        if given.is_empty() && text.is_none() {
            return Ok(Self::default());
        }
        let text = text.unwrap_or_default();
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let patterns = given.iter().map(String::as_str).chain(lines).map(pattern);
        let patterns: Vec<Pattern> = patterns.collect::<Result<_, _>>()?;
        if patterns.len() > PATTERNS_MAX {
            return Err(AllowError::Many);
        }
        Ok(Self { patterns: Some(patterns) })
    }

    /// Refuses a disk that may not be captured. What counts is where its name leads, so that a link
    /// opens nothing; the links in `/dev` are the system's own and may be named.
    ///
    /// # Errors
    /// `Refused`, whether something is there or not.
    pub fn check(&self, disk: &Path) -> Result<(), DiskError> {
        let Some(patterns) = &self.patterns else { return Ok(()) };
        let fits = |path: &Path| patterns.iter().any(|pattern| matches(pattern, path));
        let is_plain = disk.components().all(|part| part != Component::ParentDir);
        let is_allowed = is_plain
            && match disk.canonicalize() {
                Ok(real) => {
                    let is_devices_link = disk.starts_with("/dev") && real.starts_with("/dev");
                    fits(&real)
                        || (is_devices_link && fits(disk))
                        || patterns.iter().any(|pattern| leads_to(pattern, disk, &real))
                }
                Err(_) => fits(disk),
            };
        if is_allowed {
            return Ok(());
        }
        Err(DiskError::Refused { path: disk.to_owned(), allowed: self.to_string() })
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.patterns.as_deref() {
            None => formatter.write_str("every disk of this server"),
            Some([]) => formatter.write_str("none"),
            Some(patterns) => {
                let texts: Vec<&str> = patterns.iter().map(Pattern::as_str).collect();
                formatter.write_str(&texts.join(", "))
            }
        }
    }
}

fn pattern(text: &str) -> Result<Pattern, AllowError> {
    let wrong = |why: String| AllowError::Pattern { pattern: text.to_owned(), why };
    if !text.starts_with('/') {
        return Err(wrong("it does not begin with a slash".into()));
    }
    if Path::new(text).components().any(|part| part == Component::ParentDir) {
        return Err(wrong("it leads upwards".into()));
    }
    Pattern::new(text).map_err(|error| wrong(error.msg.to_owned()))
}

fn matches(pattern: &Pattern, path: &Path) -> bool {
    path.to_str().is_some_and(|path| pattern.matches_with(path, OPTIONS))
}

/// Whether the operator named this very link, and so what it leads to.
fn leads_to(pattern: &Pattern, disk: &Path, real: &Path) -> bool {
    Path::new(pattern.as_str()) == disk
        && Path::new(pattern.as_str()).canonicalize().is_ok_and(|path| path == real)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn allowed(patterns: &[&str]) -> Allowed {
        let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
        Allowed::find(&patterns, Path::new("/nowhere/allow")).unwrap()
    }

    #[test]
    fn every_disk_is_allowed_where_nothing_is_said() {
        let all = allowed(&[]);
        all.check(Path::new("/etc/shadow")).unwrap();
        assert_eq!(all.to_string(), "every disk of this server");
    }

    #[test]
    fn only_what_a_pattern_fits_is_allowed_and_the_refusal_names_the_list() {
        let some = allowed(&["/srv/disks/*.img", "/dev/vd?"]);
        for good in ["/srv/disks/a.img", "/dev/vdb"] {
            some.check(Path::new(good)).unwrap();
        }
        for bad in [
            "/etc/shadow",
            "/srv/disks/deep/a.img",
            "/srv/disks/../../etc/x.img",
            "/dev/vdb1",
            "/dev/sda",
            "srv/disks/a.img",
        ] {
            let error = some.check(Path::new(bad)).unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains("/srv/disks/*.img, /dev/vd?"), "{error}");
        }
        assert!(allowed(&["/srv/**"]).check(Path::new("/srv/disks/deep/a.img")).is_ok());
    }

    #[test]
    fn a_link_opens_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let (disks, secret) = (dir.join("disks"), dir.join("secret"));
        std::fs::create_dir(&disks).unwrap();
        std::fs::write(&secret, "").unwrap();
        std::fs::write(disks.join("a"), "").unwrap();
        symlink(&secret, disks.join("link")).unwrap();
        symlink("a", disks.join("near")).unwrap();
        symlink(&disks, dir.join("way")).unwrap();
        let some = allowed(&[&format!("{}/*", disks.display())]);
        some.check(&disks.join("a")).unwrap();
        some.check(&disks.join("near")).unwrap();
        some.check(&dir.join("way/a")).unwrap();
        assert!(some.check(&disks.join("link")).is_err());
        // Unless the operator named it.
        let link = disks.join("link");
        allowed(&[link.to_str().unwrap()]).check(&link).unwrap();
        assert!(allowed(&[link.to_str().unwrap()]).check(&secret).is_err());
    }

    #[test]
    fn names_in_dev_are_the_systems_own() {
        // What /dev/fd leads to lies elsewhere, and is not opened by its name.
        allowed(&["/dev/null"]).check(Path::new("/dev/null")).unwrap();
        let error = allowed(&["/dev/fd"]).check(Path::new("/dev/fd/../../etc/shadow"));
        assert!(error.is_err());
        let through = allowed(&["/dev/fd/*"]).check(Path::new("/dev/fd/0"));
        let leads = Path::new("/dev/fd/0").canonicalize().is_ok_and(|to| to.starts_with("/dev"));
        assert_eq!(through.is_ok(), leads || Path::new("/dev/fd/0").canonicalize().is_err());
    }

    #[test]
    fn a_file_says_it_too_and_an_empty_one_allows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("allow");
        std::fs::write(&file, "# disks of guests\n\n /srv/a \n/srv/b\n").unwrap();
        let some = Allowed::find(&["/srv/c".into()], &file).unwrap();
        assert_eq!(some.to_string(), "/srv/c, /srv/a, /srv/b");
        std::fs::write(&file, "").unwrap();
        let none = Allowed::find(&[], &file).unwrap();
        assert!(none.check(Path::new("/srv/a")).unwrap_err().to_string().contains("(none)"));
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert!(matches!(Allowed::find(&[], &file), Err(AllowError::File { .. })));
    }

    #[test]
    fn a_pattern_that_can_mean_nothing_is_refused() {
        for bad in ["disks/*", "/srv/[a", "/srv/../etc/*", "/srv/***"] {
            let refused = Allowed::find(&[bad.into()], Path::new("/nowhere/allow")).unwrap_err();
            assert!(refused.to_string().contains(bad), "{refused}");
        }
        let many = vec!["/srv/a".to_owned(); PATTERNS_MAX + 1];
        assert!(matches!(Allowed::find(&many, Path::new("/nowhere")), Err(AllowError::Many)));
    }
}
