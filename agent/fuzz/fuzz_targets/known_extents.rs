//! Extents that are announced, used and taken away in any order.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ravelin_agent::extents::{Extents, Lack};
use ravelin_fuzz::Input;
use ravelin_proto::agent::{AddExtentRequest, RemoveExtentRequest};

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mut extents = Extents::default();
    let mut users: Vec<Vec<u32>> = Vec::new();
    while !input.is_empty() {
        let id = if input.below(8) == 7 { input.u32() } else { u32::from(input.u8() % 4) };
        let disk = if input.below(8) == 7 { input.u32().cast_signed() } else { i32::from(input.u8() % 2) };
        match input.u8() % 6 {
            0 | 1 => {
                let request = AddExtentRequest {
                    id,
                    disk,
                    offset: place(&mut input),
                    length: place(&mut input),
                    filesystem: input.choose(&["", "erofs", "ext4"]).to_owned(),
                };
                if let Ok(lack) = extents.lack(&request) {
                    assert!((1..=255).contains(&id) && (0..=1).contains(&disk) && request.length > 0);
                    if lack != Lack::Nothing {
                        extents.insert(&request);
                    }
                    assert_eq!(extents.lack(&request).unwrap(), Lack::Nothing);
                }
            }
            2 | 3 => {
                if let Ok(extent) = extents.take(&RemoveExtentRequest { id, disk }) {
                    let used = users.iter().flatten().any(|layer| *layer == id);
                    assert!(disk != 0 || !used, "extent {id} is in use");
                    // While it is removed, which one at a time is, it is nobody's; then it is gone, or there again.
                    assert!(disk != 0 || extents.take_layers(&[id]).is_err());
                    if input.below(2) == 1 {
                        extents.put_back(extent);
                    }
                }
            }
            4 => {
                let layers: Vec<u32> = (0..input.u8() % 4).map(|_| u32::from(input.u8() % 4)).collect();
                if extents.take_layers(&layers).is_ok() {
                    users.push(layers);
                }
            }
            _ => {
                if let Some(layers) = users.pop() {
                    extents.give_layers(&layers);
                }
            }
        }
    }
});

fn place(input: &mut Input<'_>) -> u64 {
    if input.below(8) == 7 { input.u64() } else { u64::from(input.u8() % 4) * 4096 }
}
