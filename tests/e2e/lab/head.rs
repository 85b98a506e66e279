//! Looking into a head that was received as bytes.

/// Read bytes as text, whatever they are.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Find a field's first value.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.split("\r\n")
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// List all values of a field, in order.
pub fn values(head: &[u8], name: &str) -> Vec<Vec<u8>> {
    let prefix = format!("{name}: ");
    head.split(|byte| *byte == b'\n')
        .filter_map(|line| line.strip_prefix(prefix.as_bytes())?.strip_suffix(b"\r"))
        .map(Vec::from)
        .collect()
}
