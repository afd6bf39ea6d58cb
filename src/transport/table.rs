//! The functions of NIXL's C API, reached through a table that this crate fills.
//!
//! `nixl_sys` comes with stubs for them, each of which looks its function up once, in the library that answers to a bare
//! name, and keeps it for ever. A forked child needs the functions of another copy of NIXL ([`super::loader`]), so the symbols
//! are defined here instead: each one is a jump through its entry. The linker takes the first definition it meets, and
//! with all of them here it never opens the stubs; had one been left out, they would all be defined twice, and nothing
//! would link.
//!
//! An entry that was not filled ends the process with the name of what is missing, as the stubs do.

use std::arch::global_asm;
use std::ffi::{CStr, c_char, c_void};
use std::io::Write as _;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Makes of a list of functions their names, their number and the assembly behind the symbols.
macro_rules! c_api {
    ($($name:ident,)+) => {
        /// Every function, in the order of the table.
        const NAMES: &[&str] = &[$(stringify!($name)),+];

        global_asm!(
            // What a caller finds, what it finds where the entry was not filled, and the entry.
            ".macro dynamo_nixl_entry name",
            ".pushsection .text.dynamo_nixl_entry, \"ax\", %progbits",
            ".globl \\name",
            ".hidden \\name",
            ".type \\name, %function",
            ".p2align 4",
            "\\name:",
            jump!("dynamo_nixl_entry_of_\\name"),
            ".size \\name, . - \\name",
            "dynamo_nixl_missing_\\name:",
            report!("dynamo_nixl_name_of_\\name"),
            ".popsection",
            ".pushsection .rodata.dynamo_nixl_names, \"a\", %progbits",
            "dynamo_nixl_name_of_\\name:",
            ".asciz \"\\name\"",
            ".popsection",
            ".pushsection .data.dynamo_nixl_table, \"aw\", %progbits",
            "dynamo_nixl_entry_of_\\name:",
            ".quad dynamo_nixl_missing_\\name",
            ".popsection",
            ".endm",
            ".pushsection .data.dynamo_nixl_table, \"aw\", %progbits",
            ".p2align 3",
            ".globl dynamo_nixl_table",
            ".hidden dynamo_nixl_table",
            "dynamo_nixl_table:",
            ".popsection",
            $(concat!("dynamo_nixl_entry ", stringify!($name)),)+
            ".purgem dynamo_nixl_entry",
            missing = sym missing,
        );
    };
}

/// Jumps through an entry, with every register as the caller left it but those that a linker may use for the same.
#[cfg(target_arch = "x86_64")]
macro_rules! jump {
    ($entry:literal) => {
        concat!("jmp qword ptr [rip + ", $entry, "]")
    };
}

#[cfg(target_arch = "aarch64")]
macro_rules! jump {
    ($entry:literal) => {
        concat!("adrp x16, ", $entry, "\nldr x16, [x16, :lo12:", $entry, "]\nbr x16")
    };
}

/// Hands a name to [`missing`].
#[cfg(target_arch = "x86_64")]
macro_rules! report {
    ($name:literal) => {
        concat!("lea rdi, [rip + ", $name, "]\njmp {missing}")
    };
}

#[cfg(target_arch = "aarch64")]
macro_rules! report {
    ($name:literal) => {
        concat!("adrp x0, ", $name, "\nadd x0, x0, :lo12:", $name, "\nb {missing}")
    };
}

unsafe extern "C" {
    /// The entries. Naming them is also what has the linker take the assembly out of this crate's library.
    #[link_name = "dynamo_nixl_table"]
    static TABLE: [AtomicPtr<c_void>; NAMES.len()];
}

/// Fills the table: from here on every call goes where `find` says. A function that it does not find is left as it was
/// or, where there had been another library, goes nowhere.
///
/// # Safety
/// What `find` returns is the function of that name of one library, which stays loaded. Nobody calls a function meanwhile,
/// and nobody ever hands one an object that another library's made.
pub(super) unsafe fn fill(find: impl Fn(&str) -> Option<*mut c_void>) {
    for (name, entry) in NAMES.iter().zip(entries()) {
        if let Some(function) = find(name) {
            entry.store(function, Ordering::Release);
        }
    }
}

fn entries() -> &'static [AtomicPtr<c_void>] {
    // SAFETY: the assembly above defines it with as many entries as there are names, all of which have a value; they are
    // written through atomics only.
    unsafe { &TABLE }
}

/// Where a function ends that the library does not have. Nothing but an abort is left: the caller expects any result.
unsafe extern "C" fn missing(name: *const c_char) -> ! {
    // SAFETY: only the assembly above jumps here, with one of its names.
    let name = unsafe { CStr::from_ptr(name) };
    let _ = writeln!(
        std::io::stderr(),
        "dynamo_nixl: NIXL's library lacks {}, or was not loaded",
        name.to_string_lossy()
    );
    std::process::abort();
}

c_api! {
    nixl_capi_agent_make_connection,
    nixl_capi_check_remote_md,
    nixl_capi_create_agent,
    nixl_capi_create_backend,
    nixl_capi_create_configured_agent,
    nixl_capi_create_notif_map,
    nixl_capi_create_opt_args,
    nixl_capi_create_params,
    nixl_capi_create_query_resp_list,
    nixl_capi_create_reg_dlist,
    nixl_capi_create_remote_dlist,
    nixl_capi_create_xfer_dlist,
    nixl_capi_create_xfer_req,
    nixl_capi_deregister_mem,
    nixl_capi_destroy_agent,
    nixl_capi_destroy_backend,
    nixl_capi_destroy_mem_list,
    nixl_capi_destroy_notif_map,
    nixl_capi_destroy_opt_args,
    nixl_capi_destroy_params,
    nixl_capi_destroy_query_resp_list,
    nixl_capi_destroy_reg_dlist,
    nixl_capi_destroy_remote_dlist,
    nixl_capi_destroy_string_list,
    nixl_capi_destroy_xfer_dlist,
    nixl_capi_destroy_xfer_req,
    nixl_capi_estimate_xfer_cost,
    nixl_capi_fetch_remote_md,
    nixl_capi_gen_notif,
    nixl_capi_get_available_plugins,
    nixl_capi_get_backend_params,
    nixl_capi_get_local_md,
    nixl_capi_get_local_partial_md,
    nixl_capi_get_notifs,
    nixl_capi_get_plugin_params,
    nixl_capi_get_xfer_status,
    nixl_capi_get_xfer_telemetry,
    nixl_capi_invalidate_local_md,
    nixl_capi_invalidate_remote_md,
    nixl_capi_is_stub,
    nixl_capi_load_remote_md,
    nixl_capi_make_xfer_req,
    nixl_capi_mem_list_get,
    nixl_capi_mem_list_is_empty,
    nixl_capi_mem_list_size,
    nixl_capi_mem_type_to_string,
    nixl_capi_notif_map_clear,
    nixl_capi_notif_map_get_agent_at,
    nixl_capi_notif_map_get_notif,
    nixl_capi_notif_map_get_notifs_size,
    nixl_capi_notif_map_size,
    nixl_capi_opt_args_add_backend,
    nixl_capi_opt_args_get_custom_param,
    nixl_capi_opt_args_get_has_notif,
    nixl_capi_opt_args_get_notif_msg,
    nixl_capi_opt_args_get_skip_desc_merge,
    nixl_capi_opt_args_set_custom_param,
    nixl_capi_opt_args_set_has_notif,
    nixl_capi_opt_args_set_ip_addr,
    nixl_capi_opt_args_set_notif_msg,
    nixl_capi_opt_args_set_port,
    nixl_capi_opt_args_set_skip_desc_merge,
    nixl_capi_params_add,
    nixl_capi_params_create_iterator,
    nixl_capi_params_destroy_iterator,
    nixl_capi_params_is_empty,
    nixl_capi_params_iterator_next,
    nixl_capi_post_xfer_req,
    nixl_capi_prep_mem_view_local,
    nixl_capi_prep_mem_view_remote,
    nixl_capi_prep_xfer_dlist,
    nixl_capi_query_mem,
    nixl_capi_query_resp_list_get_params,
    nixl_capi_query_resp_list_has_value,
    nixl_capi_query_resp_list_size,
    nixl_capi_query_xfer_backend,
    nixl_capi_reg_dlist_add_desc,
    nixl_capi_reg_dlist_clear,
    nixl_capi_reg_dlist_desc_count,
    nixl_capi_reg_dlist_get_type,
    nixl_capi_reg_dlist_is_empty,
    nixl_capi_reg_dlist_print,
    nixl_capi_reg_dlist_rem_desc,
    nixl_capi_reg_dlist_resize,
    nixl_capi_reg_dlist_trim,
    nixl_capi_register_mem,
    nixl_capi_release_mem_view,
    nixl_capi_release_xfer_dlist_handle,
    nixl_capi_release_xfer_req,
    nixl_capi_remote_dlist_add_desc,
    nixl_capi_send_local_md,
    nixl_capi_send_local_partial_md,
    nixl_capi_string_list_get,
    nixl_capi_string_list_size,
    nixl_capi_xfer_dlist_add_desc,
    nixl_capi_xfer_dlist_clear,
    nixl_capi_xfer_dlist_desc_count,
    nixl_capi_xfer_dlist_get_type,
    nixl_capi_xfer_dlist_is_empty,
    nixl_capi_xfer_dlist_len,
    nixl_capi_xfer_dlist_print,
    nixl_capi_xfer_dlist_rem_desc,
    nixl_capi_xfer_dlist_resize,
    nixl_capi_xfer_dlist_trim,
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" {
        fn nixl_capi_create_agent();
        fn nixl_capi_register_mem();
        fn nixl_capi_get_xfer_telemetry();
    }

    /// What `nixl_sys` calls is found by these very names, of which a program has one each.
    #[test]
    fn the_linker_has_taken_the_entries_and_not_the_stubs() {
        let first = nixl_capi_create_agent as *const () as usize;
        let last = nixl_capi_get_xfer_telemetry as *const () as usize;
        let between = nixl_capi_register_mem as *const () as usize;
        // They lie one behind the other, and nothing else does in so little space.
        let size = NAMES.len() * 64;
        assert!(first.abs_diff(last) < size && first.abs_diff(between) < size);
    }

    #[test]
    fn each_function_has_its_own_entry() {
        let mut sorted = NAMES.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted, NAMES);
        let mut targets: Vec<usize> = entries()
            .iter()
            .map(|entry| entry.load(Ordering::Acquire) as usize)
            .collect();
        targets.sort_unstable();
        targets.dedup();
        assert_eq!(targets.len(), NAMES.len());
        assert!(!targets.contains(&0));
    }
}
