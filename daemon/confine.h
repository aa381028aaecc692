/* confine: what a process of siltd never needs is taken from it before it reads a client's bytes.
 */
#ifndef SILT_DAEMON_CONFINE_H
#define SILT_DAEMON_CONFINE_H

/* Denies all threads of the process, for good, to run programs, to look into other processes, to
 * change mounts, namespaces, modules or its user (seccomp, EPERM), and to gain privileges. 0 or a
 * negative errno where this kernel has no seccomp. */
int confine(void);

#endif
