use super::CgroupError;

/// The path of a cgroup below the hierarchy's root, without leading slash, for an OCI spec's `linux.cgroupsPath`.
pub(super) fn normalize(cgroups_path: &str) -> Result<String, CgroupError> {
    let invalid = || CgroupError::Path { path: cgroups_path.chars().take(256).collect() };
    let parts: Vec<_> = cgroups_path.split(':').collect();
    let path = match parts.as_slice() {
        [slice, prefix, name] if !slice.contains('/') && !name.is_empty() => {
            format!("{}{}", expand(slice).ok_or_else(invalid)?, unit(prefix, name))
        }
        _ => cgroups_path.to_owned(),
    };
    let path = path.trim_matches('/');
    let plain =
        |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0') && !part.starts_with("cgroup.");
    if path.split('/').all(plain) { Ok(path.to_owned()) } else { Err(invalid()) }
}

/// The directory of a slice, with a slash at its end: `a-b.slice` lies in `a.slice`.
fn expand(slice: &str) -> Option<String> {
    let name = match slice {
        "" => return Some("system.slice/".to_owned()),
        "-.slice" => return Some(String::new()),
        other => other.strip_suffix(".slice")?,
    };
    let mut path = String::new();
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return None;
        }
        prefix.push_str(part);
        path.push_str(&format!("{prefix}.slice/"));
        prefix.push('-');
    }
    Some(path)
}

fn unit(prefix: &str, name: &str) -> String {
    match prefix {
        _ if name.ends_with(".slice") => name.to_owned(),
        "" => format!("{name}.scope"),
        _ => format!("{prefix}-{name}.scope"),
    }
}
