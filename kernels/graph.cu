/*
 * Passes that come again, as graphs: a pass of few rows is some hundred launches of little work,
 * and a graph queues them in one call. A pass is recorded when it comes for the second time: ragged
 * ones, which never do, cost nothing, and by then all that it calls has been loaded. Passes that
 * will surely come are recorded ahead of time, without being computed.
 */
#include "kernels/cuda.cuh"

#include <string.h>

/* The place of a key; else the one that was not used for longest, emptied for it. */
static struct graph *find(struct cuda_state *s, const void *key, size_t key_bytes)
{
    struct graph *oldest = &s->graph[0];
    for (int i = 0; i < GRAPHS_MAX; i++) {
        struct graph *g = &s->graph[i];
        if (g->used && !memcmp(g->key, key, key_bytes))
            return g;
        oldest = g->used < oldest->used ? g : oldest;
    }
    if (oldest->ready)
        (void)cudaGraphExecDestroy(oldest->ready);
    memset(oldest, 0, sizeof *oldest);
    memcpy(oldest->key, key, key_bytes);
    return oldest;
}

static bool graph_begin(struct cuda *c, const void *key, size_t key_bytes)
{
    struct cuda_state *s = c->state;
    if (s->graphs_off || key_bytes > GRAPH_KEY_MAX)
        return c->ahead;
    struct graph *g = find(s, key, key_bytes);
    bool again = g->used > 0 || c->ahead;
    g->used = ++s->passes;
    if (g->ready) {
        if (!c->ahead)
            cuda_note(c, cudaGraphLaunch(g->ready, s->stream), "graph");
        return true;
    }
    if (!again)
        return false;
    if (cudaStreamBeginCapture(s->stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
        (void)cudaGetLastError(); /* launched one by one */
        return c->ahead;
    }
    s->recording = g;
    s->unrecordable = false;
    return false;
}

static bool graph_again(struct cuda *c)
{
    struct cuda_state *s = c->state;
    struct graph *g = s->recording;
    cudaGraph_t recorded = NULL;
    if (!g)
        return false;
    bool made = cudaStreamEndCapture(s->stream, &recorded) == cudaSuccess && !s->unrecordable &&
                cudaGraphInstantiate(&g->ready, recorded, 0) == cudaSuccess;
    bool fine = made && cudaGraphUpload(g->ready, s->stream) == cudaSuccess;
    if (recorded)
        (void)cudaGraphDestroy(recorded);
    s->recording = NULL;
    if (!fine) { /* by a library, or for lack of memory: launched one by one from now on */
        (void)cudaGetLastError();
        if (made)
            (void)cudaGraphExecDestroy(g->ready);
        g->ready = NULL;
        s->graphs_off = !c->ahead; /* ahead of time: it is tried again when it comes */
        return !c->ahead;
    }
    c->graphs++;
    if (!c->ahead)
        cuda_note(c, cudaGraphLaunch(g->ready, s->stream), "graph");
    return false;
}

void cuda_table_graph(struct cuda *c)
{
    c->graph_begin = graph_begin;
    c->graph_again = graph_again;
}

void cuda_close_graphs(struct cuda *c)
{
    for (int i = 0; i < GRAPHS_MAX; i++)
        if (c->state->graph[i].ready)
            (void)cudaGraphExecDestroy(c->state->graph[i].ready);
}
