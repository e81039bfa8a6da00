//! The module map of ARCHITECTURE.md against the sources: no room imports one that stands above it.
//!
//! A room is a module at the root of `src/`, with everything in its folder. The map lists the rooms from top
//! to bottom, one per line:
//!
//! ```text
//! shop   -> tools, wood..   sells chairs
//! tools  -> nothing         cuts and glues
//! wood   -> nothing         planks
//! ```
//!
//! The rooms that a room may import follow the arrow, divided by commas: `wood..` is `wood` and every room
//! below it, `nothing` is none. The rest of the line is the description.

use super::source::{Paths, exported_macros, paths, root_names, tokens};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const PAGE: &str = "ARCHITECTURE.md";
const HEADING: &str = "## Module map";
const ROOT: &str = "src/lib.rs";

/// A line of the map.
#[derive(Debug, PartialEq)]
struct Room<'a> {
    name: &'a str,
    line: usize,
    /// Names of rooms, with `..` for all rooms below.
    imports: Vec<&'a str>,
    description: &'a str,
}

/// Problems of the map and of the sources below `root`.
pub(super) fn check(root: &Path) -> Result<Vec<String>, String> {
    let page = super::read(root, PAGE)?;
    let mut problems = Vec::new();
    let rooms = parse(&page, &mut problems);
    let files = Sources::read(root)?;
    let sources = files.rooms(&mut problems);
    check_names(&rooms, &sources, &mut problems);
    let below = allowed(&rooms, &mut problems);
    let place = |name: &str| rooms.iter().position(|room| room.name == name);
    for (room, imports) in &sources {
        let Some(own) = place(room) else { continue };
        for import in imports {
            // A room that is not listed has been named already.
            let Some(other) = place(import.room) else { continue };
            let at = format!("{}:{}: room `{room}` imports `{}`", import.file, import.line, import.room);
            if other < own {
                problems.push(format!("{at}, which stands above it"));
            } else if !below[own].contains(&other) {
                problems.push(format!("{at}, which its line of the map does not list"));
            }
        }
    }
    check_needed(&rooms, &sources, &mut problems);
    Ok(problems)
}

/// The map of the sources: the page's rooms in their order with their imports.
pub(super) fn draw(root: &Path) -> Result<String, String> {
    let page = super::read(root, PAGE)?;
    let (rooms, files) = (parse(&page, &mut Vec::new()), Sources::read(root)?);
    let sources = files.rooms(&mut Vec::new());
    let unlisted = sources.keys().copied().filter(|name| rooms.iter().all(|room| room.name != *name));
    let unlisted = unlisted.map(|name| (name, "not listed"));
    let mut map = String::new();
    for (name, description) in rooms.iter().map(|room| (room.name, room.description)).chain(unlisted) {
        let imports: BTreeSet<_> =
            sources.get(name).into_iter().flatten().map(|import| import.room).collect();
        let place = |name: &str| rooms.iter().position(|room| room.name == name);
        let mut imports: Vec<_> = imports.into_iter().collect();
        imports.sort_by_key(|name| place(name).unwrap_or(usize::MAX));
        let imports = if imports.is_empty() { "nothing".to_owned() } else { imports.join(", ") };
        map += &format!("{name:12} -> {imports:30}   {description}\n");
    }
    Ok(map)
}

/// The rooms that the page lists, from top to bottom.
fn parse<'a>(page: &'a str, problems: &mut Vec<String>) -> Vec<Room<'a>> {
    let lines = page.lines().zip(1..);
    let section = lines.skip_while(|(line, _)| *line != HEADING).skip(1);
    let section = section.take_while(|(line, _)| !line.starts_with("## "));
    let block: Vec<_> = section.skip_while(|(line, _)| !line.starts_with("```")).skip(1).collect();
    let Some(end) = block.iter().position(|(line, _)| *line == "```") else {
        problems.push(format!("{PAGE}: there is no fenced block below `{HEADING}`"));
        return Vec::new();
    };
    let mut rooms: Vec<Room> = Vec::new();
    for (line, number) in block[..end].iter().filter(|(line, _)| !line.trim().is_empty()) {
        let Some(room) = parse_line(line, *number) else {
            problems.push(format!("{PAGE}:{number}: `ROOM -> ROOMS  DESCRIPTION` is the form of a line"));
            continue;
        };
        if rooms.iter().any(|other| other.name == room.name) {
            problems.push(format!("{PAGE}:{number}: room `{}` is listed twice", room.name));
        } else {
            rooms.push(room);
        }
    }
    rooms
}

fn parse_line(line: &str, number: usize) -> Option<Room<'_>> {
    let (name, mut rest) = line.split_once("->")?;
    let mut imports = Vec::new();
    loop {
        rest = rest.trim_start();
        let (word, after) = rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len()));
        rest = after;
        let import = word.strip_suffix(',').unwrap_or(word);
        imports.push(import);
        if import == word {
            break;
        }
    }
    if imports == ["nothing"] {
        imports.clear();
    }
    let (name, description) = (name.trim(), rest.trim());
    let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    let named = imports.iter().all(|import| is_name(import.strip_suffix("..").unwrap_or(import)));
    let complete = is_name(name) && named && !description.is_empty();
    complete.then_some(Room { name, line: number, imports, description })
}

/// Checks that the page's rooms are those of the sources.
fn check_names(rooms: &[Room], sources: &BTreeMap<&str, Vec<Use>>, problems: &mut Vec<String>) {
    for room in rooms.iter().filter(|room| !sources.contains_key(room.name)) {
        problems.push(format!("{PAGE}:{}: there is no room `{}` in src/", room.line, room.name));
    }
    for name in sources.keys().filter(|name| rooms.iter().all(|room| room.name != **name)) {
        problems.push(format!("{PAGE}: room `{name}` of src/ is not listed"));
    }
}

/// For each room, the places of the rooms that it may import.
fn allowed(rooms: &[Room], problems: &mut Vec<String>) -> Vec<BTreeSet<usize>> {
    let mut all = Vec::new();
    for (own, room) in rooms.iter().enumerate() {
        let mut allowed = BTreeSet::new();
        for import in &room.imports {
            let name = import.strip_suffix("..").unwrap_or(import);
            match rooms.iter().position(|other| other.name == name) {
                Some(other) if other > own => {
                    let end = if name == *import { other + 1 } else { rooms.len() };
                    allowed.extend(other..end);
                }
                Some(_) => problems.push(format!(
                    "{PAGE}:{}: room `{}` lists `{name}`, which does not stand below it",
                    room.line, room.name
                )),
                None => problems.push(format!(
                    "{PAGE}:{}: room `{}` lists `{name}`, which is no room",
                    room.line, room.name
                )),
            }
        }
        all.push(allowed);
    }
    all
}

/// Checks that the map lists no import that does not exist, except in `room..`.
fn check_needed(rooms: &[Room], sources: &BTreeMap<&str, Vec<Use>>, problems: &mut Vec<String>) {
    for room in rooms {
        let Some(uses) = sources.get(room.name) else { continue };
        let listed = room.imports.iter().filter(|import| !import.ends_with(".."));
        for import in listed.filter(|import| uses.iter().all(|used| used.room != **import)) {
            problems.push(format!(
                "{PAGE}:{}: room `{}` lists `{import}`, which it does not import",
                room.line, room.name
            ));
        }
    }
}

/// An import of one room by another.
#[derive(Debug, PartialEq)]
struct Use<'a> {
    room: &'a str,
    file: &'a str,
    line: usize,
}

/// The files below `src/`, by path from the root of the repository.
struct Sources(BTreeMap<String, String>);

impl Sources {
    fn read(root: &Path) -> Result<Self, String> {
        let files = super::walk(root, "src")?.into_iter().filter(|file| file.ends_with(".rs"));
        let files = files.map(|file| super::read(root, &file).map(|text| (file, text)));
        files.collect::<Result<_, _>>().map(Self)
    }

    /// The rooms with their imports of other rooms.
    fn rooms(&self, problems: &mut Vec<String>) -> BTreeMap<&str, Vec<Use<'_>>> {
        let (root, files): (Vec<_>, Vec<_>) = self.0.iter().partition(|(file, _)| *file == ROOT);
        let files: Vec<_> =
            files.into_iter().map(|(file, text)| (file.as_str(), module(file), tokens(text))).collect();
        let mut rooms: BTreeMap<_, _> = files.iter().map(|(_, module, _)| (module[0], Vec::new())).collect();
        let names: BTreeMap<_, _> = root
            .iter()
            .flat_map(|(_, text)| root_names(&tokens(text)))
            .map(|import| (import.leaf, import.name))
            .chain(files.iter().flat_map(|(_, module, tokens)| {
                exported_macros(tokens).into_iter().map(|name| (name, module[0]))
            }))
            .collect();
        let read: Vec<(_, _, Paths)> =
            files.iter().map(|(file, module, tokens)| (*file, module, paths(tokens, module))).collect();
        let tests: Vec<_> = read.iter().flat_map(|(_, _, paths)| &paths.tests).collect();
        for (file, module, paths) in &read {
            if tests.iter().any(|test| module.starts_with(test)) {
                continue;
            }
            for import in &paths.imports {
                let name = import.name;
                let room = if rooms.contains_key(name) { Some(name) } else { names.get(name).copied() };
                let line = import.line;
                match room {
                    // A crate that the root re-exports.
                    Some(room) if !rooms.contains_key(room) => (),
                    Some(room) if room == module[0] => (),
                    Some(room) => {
                        rooms.get_mut(module[0]).expect("each file has a room").push(Use {
                            room,
                            file,
                            line,
                        });
                    }
                    None => {
                        let name = if name == "crate" { name.into() } else { format!("crate::{name}") };
                        let own = module[0];
                        problems.push(format!(
                            "{file}:{line}: room `{own}` imports `{name}`, which is in no room"
                        ));
                    }
                }
            }
        }
        rooms
    }
}

/// The module that a file of `src/` is.
fn module(file: &str) -> Vec<&str> {
    let path = file.strip_prefix("src/").unwrap_or(file);
    let path = path.strip_suffix(".rs").unwrap_or(path);
    path.strip_suffix("/mod").unwrap_or(path).split('/').collect()
}

#[cfg(test)]
mod tests;
