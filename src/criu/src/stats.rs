//! The figures CRIU leaves behind after a dump (`stats-dump` in its work directory).

use thiserror::Error;

use crate::image::{Header, ImageError, STATS_MAGIC};
use crate::proto::{ProtoError, find_bytes, find_varint};

/// Why a statistics file cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StatsError {
    /// Not a statistics file.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Its record is not a message.
    #[error(transparent)]
    Proto(#[from] ProtoError),
    /// It has no figures of a dump.
    #[error("no dump statistics")]
    Missing,
}

/// What a dump took. Times are in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DumpStats {
    /// Time to freeze the tasks.
    pub freezing_micros: u64,
    /// Time the tasks were frozen by CRIU itself.
    pub frozen_micros: u64,
    /// Time to collect the memory.
    pub memdump_micros: u64,
    /// Time to write the memory.
    pub memwrite_micros: u64,
    /// Pages looked at.
    pub pages_scanned: u64,
    /// Pages of processes written.
    pub pages_written: u64,
    /// Pages of shared memory written.
    pub shared_pages_written: u64,
}

impl DumpStats {
    /// Reads the contents of `stats-dump`.
    pub fn parse(file: &[u8]) -> Result<Self, StatsError> {
        let mut records = Header::Service(STATS_MAGIC).open(file)?;
        let entry = records.next().ok_or(StatsError::Missing)??;
        let dump = find_bytes(entry, 1)?.ok_or(StatsError::Missing)?;
        let number = |field| Ok::<_, ProtoError>(find_varint(dump, field)?.unwrap_or_default());
        Ok(Self {
            freezing_micros: number(1)?,
            frozen_micros: number(2)?,
            memdump_micros: number(3)?,
            memwrite_micros: number(4)?,
            pages_scanned: number(5)?,
            pages_written: number(7)?,
            shared_pages_written: number(14)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::put_record;
    use crate::proto::{Field, Value, put_field, put_uint};

    #[test]
    fn the_figures_of_a_dump_are_read() {
        let mut dump = Vec::new();
        for (number, value) in [(1, 10), (2, 2000), (3, 30), (4, 40), (5, 50), (7, 70), (14, 140)] {
            put_uint(&mut dump, number, value);
        }
        let mut entry = Vec::new();
        put_field(&mut entry, &Field { number: 1, value: Value::Bytes(&dump) });
        let mut file = Header::Service(STATS_MAGIC).bytes();
        put_record(&mut file, &entry);
        let stats = DumpStats::parse(&file).unwrap();
        assert_eq!(stats.frozen_micros, 2000);
        assert_eq!(stats.pages_written, 70);
        assert_eq!(stats.shared_pages_written, 140);
        let real = DumpStats::parse(include_bytes!("../testdata/stats-dump")).unwrap();
        assert_eq!((real.pages_written, real.shared_pages_written), (1198, 1));
        assert_eq!(DumpStats::parse(&file[..8]), Err(StatsError::Missing));
    }
}
