//! Which vmrun may run the guest.
