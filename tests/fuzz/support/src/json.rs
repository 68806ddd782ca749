//! Changes to JSON documents that leave them JSON: what flips bytes seldom gets past the parser.

use serde_json::{Map, Value, json};

/// Most values of a document that are changed at a time.
const MOST_CHANGES: u64 = 4;

/// A mutator for documents (see `libfuzzer_sys::fuzz_mutator`): most of the time it changes values of the document, or
/// puts one of `values` in their place, and sometimes it leaves the bytes to libFuzzer.
///
/// `values` are texts in JSON that mean something to what is tested.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32, values: &[&str]) -> usize {
    let mut random = Random(u64::from(seed) | 1 << 32);
    let document = serde_json::from_slice::<Value>(&data[..size]).ok().filter(|_| random.below(8) > 0);
    let Some(mut document) = document else {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    };
    for _ in 0..=random.below(MOST_CHANGES) {
        change(&mut document, &mut random, values);
    }
    let text = serde_json::to_vec(&document).unwrap_or_default();
    if text.is_empty() || text.len() > max_size {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    }
    data[..text.len()].copy_from_slice(&text);
    text.len()
}

/// Walks down to some value and changes it.
fn change(value: &mut Value, random: &mut Random, values: &[&str]) {
    let deeper = random.below(6) > 0;
    match value {
        Value::Object(map) if deeper && !map.is_empty() => {
            let key = map.keys().nth(random.index(map.len())).cloned().unwrap_or_default();
            match random.below(8) {
                0 => drop(map.remove(&key)),
                1 => copy_entry(map, &key, random),
                _ => {
                    if let Some(inner) = map.get_mut(&key) {
                        change(inner, random, values);
                    }
                }
            }
        }
        Value::Array(list) if deeper && !list.is_empty() => {
            let index = random.index(list.len());
            match random.below(8) {
                0 => drop(list.remove(index)),
                1 => list.push(list[index].clone()),
                _ => change(&mut list[index], random, values),
            }
        }
        Value::String(text) if deeper => change_text(text, random),
        other => *other = new_value(random, values),
    }
}

/// Gives a value another name beside its own.
fn copy_entry(map: &mut Map<String, Value>, key: &str, random: &mut Random) {
    let value = map[key].clone();
    let mut name = key.to_owned();
    change_text(&mut name, random);
    map.insert(name, value);
}

fn change_text(text: &mut String, random: &mut Random) {
    const PIECES: [&str; 16] =
        ["/", "..", "/../", ".", "=", ":", "\0", "\n", "-1", "ä", "0", "CAP_", "\u{202e}", ",", " ", "%s"];
    let mut characters: Vec<char> = text.chars().collect();
    let at = random.index(characters.len() + 1);
    match random.below(6) {
        0 => characters.truncate(at),
        1 if at < characters.len() => drop(characters.remove(at)),
        2 => characters.extend(characters.clone()),
        3 => characters.insert(at, char::from_u32(random.next() as u32 % 128).unwrap_or('x')),
        _ => {
            let piece = PIECES[random.index(PIECES.len())];
            characters.splice(at..at, piece.chars());
        }
    }
    characters.truncate(1 << 12);
    *text = characters.into_iter().collect();
}

fn new_value(random: &mut Random, values: &[&str]) -> Value {
    match random.below(12) {
        0 => Value::Null,
        1 => json!(random.below(2) == 0),
        2 => json!([]),
        3 => json!({}),
        4 => json!(""),
        5 => json!(random.next()),
        6 => json!(-(random.next() as i64 & i64::MAX)),
        7 => json!([0, 1, -1, 255, 65_536, i64::MAX, i64::MIN, 1 << 31][random.index(8)]),
        8 => json!(0.5),
        _ if values.is_empty() => json!(0),
        _ => serde_json::from_str(values[random.index(values.len())]).unwrap_or(Value::Null),
    }
}

/// Numbers that follow from a seed (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }
}
