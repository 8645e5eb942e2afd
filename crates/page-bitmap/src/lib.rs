//! Sets of guest pages: the one type of bitmap of all crates.
//!
//! | file | what |
//! | --- | --- |
//! | `layout` | where the bits of each region are in a bitmap of a whole guest |
//! | `words` | the words of a bitmap, on the heap or in a memory file that two processes share |
//! | `bitmap` | [`PageBitmap`], a set of pages of one region |
//! | `runs` | its pages as runs |
//! | `tracking` | guest memory that marks what is written through it ([`TrackedMemory`]) |
//! | `guest` | [`GuestBitmap`], the bitmaps of all regions, in one memory file if they are shared |
//!
//! A dirty bit is set by KVM or by [`TrackedMemory`], merged into a shared [`GuestBitmap`] by a
//! harvest, and taken out of that by the client that sends the page.
#![warn(missing_docs)]
#![deny(unsafe_code)]

mod bitmap;
mod guest;
mod layout;
mod runs;
mod tracking;
mod words;

pub use bitmap::PageBitmap;
pub use guest::{BitmapError, GuestBitmap};
pub use runs::{Runs, TakeRuns};
pub use tracking::TrackedMemory;
