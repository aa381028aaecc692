/*
 * vfs_fault: SQLite's disk with a will of its own.
 *
 * Stands before the real file system. The n-th call can fail, once or from then on; and the power
 * can be cut: every write since the file's last sync is then lost, kept or torn as a seed says, and
 * nothing reaches the disk any more until vfs_fault_mend.
 */
#ifndef SILT_TEST_VFS_FAULT_H
#define SILT_TEST_VFS_FAULT_H

#include <stdbool.h>
#include <stdint.h>

/* Beside SQLite's codes: half of a read or write is done; it is done, but late. */
enum { VFS_SHORT = -1, VFS_LATE = -2 };

void vfs_fault_install(void); /* as SQLite's default, once */
/* Call number `at` (1: the next) fails with this SQLite code or goes as above; 0: none does. */
void vfs_fault_at(uint64_t at, int code, bool for_ever);
uint64_t vfs_fault_calls(void); /* since vfs_fault_at */
bool vfs_fault_met(void);       /* the failing call has come */
/* A disk that says it has synced and has not: tests that look for loss must find some. */
void vfs_fault_lie(bool lie);
void vfs_fault_cut(uint64_t seed);
void vfs_fault_mend(void);

#endif
