//! Limits of request heads and trailers.

/// Longest request target in bytes: the limit of nginx and Apache, and browsers stay well below.
pub(crate) const MAX_TARGET: usize = 8 << 10;

/// Largest request head in bytes. Cookies fill 8 KiB at times; twice that leaves room for the rest.
pub(crate) const MAX_HEAD: usize = 16 << 10;

/// Most header fields of a request: Apache's limit. All cookies count as one.
pub(crate) const MAX_FIELDS: usize = 100;

/// Most trailer fields of a request. gRPC sends three.
pub(crate) const MAX_TRAILERS: usize = 32;

/// Bytes between two cookies of one field: `; `.
pub(crate) const CRUMB_OVERHEAD: usize = 2;

/// Largest field list that HTTP/2 decodes, in bytes (RFC 9113 §6.5.2 counts 32 for each field
/// besides its name and value): a head of [`MAX_HEAD`] full of cookies such as `a=1`, each in a
/// field of its own. The list is checked and its crumbs are joined at once, so that no more than
/// that waits in memory.
pub(crate) const MAX_FIELD_LIST: u32 = {
    let crumbs = MAX_HEAD / ("a=1".len() + CRUMB_OVERHEAD);
    (MAX_HEAD + crumbs * ("cookie".len() + 32) + MAX_FIELDS * 32) as u32
};
