//! Limits of a cold move that the checks before it and the holder on the node go by alike.

/// The most bytes of a writable layer: what is put into a new root within kubelet's two minutes for a
/// container's creation, also by a slow disk.
pub const ROOT_BYTES: u64 = 4 << 30;
/// The most files and directories of one, for the same reason.
pub const ROOT_ENTRIES: u64 = 200_000;

/// The room, in bytes, that a copy of so many bytes of files needs on a disk: its own records, and what others
/// write meanwhile. An application that has ended waits for as long as there is none.
pub fn room_for(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 4).saturating_add(1 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_beside_the_files() {
        assert_eq!(room_for(0), 1 << 30);
        assert_eq!(room_for(4 << 30), 6 << 30);
        assert_eq!(room_for(u64::MAX), u64::MAX);
    }
}
