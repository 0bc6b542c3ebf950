//! A filter of a run's keys: it tells of most keys that the run has not that it has not, without a look at the file.
//!
//! A Bloom filter in blocks of a cache line (Putze, Sanders, Singler, "Cache-, hash- and space-efficient Bloom
//! filters", 2007): a key has six bits, all in one block. It has 10 to 20 bits for each key; then one key of a hundred
//! that is not there seems to be, at most.
//!
//! Always: a key that was added may be there.

use xxhash_rust::xxh3::xxh3_64;

use crate::machine::rows::wire::Malformed;

const BLOCK_WORDS: usize = 8;
const BLOCK_BITS: u32 = 64 * BLOCK_WORDS as u32;
const BITS_PER_KEY: u64 = 10;
const BITS_SET: usize = 6;
/// 1 GiB: more keys than there can be, with less for each.
const BLOCKS_MAX: u64 = 1 << 24;

/// A key's, in every filter.
#[derive(Clone, Copy, Debug)]
pub(in crate::machine) struct FilterHash(u64);

impl FilterHash {
    pub(in crate::machine) fn of(key: &[u8]) -> Self {
        Self(xxh3_64(key))
    }
}

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::machine) struct Filter {
    /// A power of two of blocks.
    words: Vec<u64>,
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter")
            .field("bytes", &(self.words.len() * 8))
            .finish()
    }
}

fn blocks_for(keys: u64) -> usize {
    let blocks = keys.saturating_mul(BITS_PER_KEY) / u64::from(BLOCK_BITS) + 1;
    blocks.min(BLOCKS_MAX).next_power_of_two() as usize
}

impl Filter {
    /// An empty one, for so many keys.
    pub(in crate::machine) fn for_keys(keys: u64) -> Self {
        Self {
            words: vec![0; blocks_for(keys) * BLOCK_WORDS],
        }
    }

    fn block(&self, hash: FilterHash) -> usize {
        let blocks = self.words.len() / BLOCK_WORDS;
        ((hash.0 >> 32) as usize & (blocks - 1)) * BLOCK_WORDS
    }

    fn bits(hash: FilterHash) -> impl Iterator<Item = (usize, u64)> {
        let mut rest = hash.0 as u32;
        (0..BITS_SET).map(move |_| {
            let bit = rest >> (32 - BLOCK_BITS.trailing_zeros());
            rest = rest.wrapping_mul(0x9e37_79b9);
            ((bit / 64) as usize, 1 << (bit % 64))
        })
    }

    pub(in crate::machine) fn add(&mut self, hash: FilterHash) {
        let block = self.block(hash);
        for (word, bit) in Self::bits(hash) {
            self.words[block + word] |= bit;
        }
    }

    /// Whether a key may have been added.
    pub(in crate::machine) fn may_have(&self, hash: FilterHash) -> bool {
        let block = self.block(hash);
        Self::bits(hash).all(|(word, bit)| self.words[block + word] & bit != 0)
    }

    /// Makes it as small as one for so many keys would be, if it is larger.
    pub(in crate::machine) fn fit(&mut self, keys: u64) {
        let wanted = blocks_for(keys) * BLOCK_WORDS;
        while self.words.len() > wanted {
            let half = self.words.len() / 2;
            let (low, high) = self.words.split_at_mut(half);
            for (low, high) in low.iter_mut().zip(high) {
                *low |= *high;
            }
            self.words.truncate(half);
        }
        self.words.shrink_to_fit();
    }

    /// It in parts of so many bytes at most, a multiple of 8.
    pub(in crate::machine) fn parts(&self, bytes: usize) -> impl Iterator<Item = Vec<u8>> {
        self.words
            .chunks((bytes / 8).max(1))
            .map(|words| words.iter().flat_map(|word| word.to_be_bytes()).collect())
    }

    /// It of its parts, one behind the other.
    pub(in crate::machine) fn of_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let (words, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty()
            || !(words.len() / BLOCK_WORDS).is_power_of_two()
            || words.len() % BLOCK_WORDS != 0
        {
            return Err(Malformed("a filter is no power of two of blocks"));
        }
        Ok(Self {
            words: words.iter().map(|word| u64::from_be_bytes(*word)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_added_may_be_there_however_small_it_is_made_and_it_reads_back(
            keys in prop::collection::vec(any::<Vec<u8>>(), 0..300), room in 0u64..3000, part in 1usize..200,
        ) {
            let mut filter = Filter::for_keys(room);
            for key in &keys {
                filter.add(FilterHash::of(key));
            }
            filter.fit(keys.len() as u64);
            let bytes: Vec<u8> = filter.parts(part).flatten().collect();
            prop_assert_eq!(Filter::of_bytes(&bytes), Ok(filter.clone()));
            prop_assert!(Filter::of_bytes(&bytes[1..]).is_err());
            for key in &keys {
                prop_assert!(filter.may_have(FilterHash::of(key)));
            }
        }
    }

    #[test]
    fn few_keys_that_are_not_there_seem_to_be() {
        let mut filter = Filter::for_keys(52_000);
        let name = |kind: &str, number: u32| FilterHash::of(format!("{kind}/{number}").as_bytes());
        for number in 0..52_000 {
            filter.add(name("there", number));
        }
        let seem = (0..100_000).filter(|number| filter.may_have(name("not there", *number)));
        assert!(seem.count() < 1_500);
    }
}
