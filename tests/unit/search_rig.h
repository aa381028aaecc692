/*
 * search_rig: the text index of a stream, stepped by hand beside the rig that feeds the stream.
 */
#ifndef SILT_TEST_SEARCH_RIG_H
#define SILT_TEST_SEARCH_RIG_H

#include "daemon/search_internal.h"
#include "tests/unit/rig.h"

enum { SEARCH_RIG_CHUNK = 256, SEARCH_RIG_SLOTS = 2 };

struct search_rig {
    char folder[128];
    bool keys;
    struct rig rig; /* stream "s" is in slot 0 */
    struct search *search;
    void *memory;
    _Atomic bool stopping;
    uint8_t *table; /* [1 << 16][RECALL_QUERY_TOKENS] what is asked for by meaning; NULL: nothing */
    struct search_job job; /* for a test that needs but one */
};

/* In a new folder; keys: recall keys are kept. */
struct search_rig *search_rig_open(bool keys);
void search_rig_close(struct search_rig *p);
/* The search alone ends and begins again; with the journal, where that was ended by rig_close. */
void search_rig_stop(struct search_rig *p);
void search_rig_start(struct search_rig *p);
void search_rig_start_all(struct search_rig *p);

/* Until all is indexed. */
void search_rig_index(struct search_rig *p);
/* As it stands; its result. */
int search_rig_run(struct search_rig *p, struct search_job *job);
/* Chunks of slot 0's stream that are about the question, best first. */
void search_rig_find(struct search_rig *p, struct search_job *job, const char *question);
/* The texts of what was found. */
void search_rig_read(struct search_rig *p, struct search_job *job);
void search_rig_look(struct search_rig *p, struct search_job *job, const char *question);
/* Questions ask for nothing by meaning, then, from search_rig_near on, for the first token of this
 * too. */
void search_rig_mean(struct search_rig *p);
void search_rig_near(struct search_rig *p, const char *text);

#endif
