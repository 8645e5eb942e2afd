//! The programs end to end, on guests of `/dev/kvm`: one program, since linking each file by itself takes
//! longer than running it.

mod architecture;
mod broken_output;
mod confinement;
mod control_abuse;
mod damaged_streams;
mod departures;
mod devices;
mod disks;
mod durable;
mod faults;
mod files;
mod guest_memory;
mod handover;
mod hung_storage;
mod json;
mod kills;
mod messages;
mod migrate;
mod net;
mod not_started;
mod page_contents;
mod pause_owner;
mod places;
mod plot;
mod refusals;
mod restore_again;
mod restore_calls;
mod rules;
mod save_restore;
mod session;
mod shell;
mod ssh;
mod statuses;
mod terminal;
mod usage;
