/*
 * Projections by cuBLASLt: bf16 in, sums in fp32.
 *
 * A row of a product must not depend on how many rows are computed with it, and cuBLASLt picks its
 * kernels by shape. So a shape of weight asks once, for a large batch (and once more for single
 * tokens), without workspace and without any reduction across blocks, and every later product uses
 * that algorithm whatever its rows. The library is loaded at run time: a build with CUDA runs where
 * there is none.
 */
#include "kernels/cuda.cuh"

#include <cublasLt.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

enum { PLANS_MAX = 64, ROWS_BULK = 8192, ROWS_FEW = 64 };

/* Everything that a product needs but its rows. */
struct plan {
    uint32_t rows, cols; /* of the weight */
    enum cuda_out kind;
    bool few;
    size_t out_stride;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t weight;
    cublasLtMatmulAlgo_t algorithm;
};

#define LT_CALLS(X)                                                                                \
    X(Create)                                                                                      \
    X(Destroy)                                                                                     \
    X(MatmulDescCreate)                                                                            \
    X(MatmulDescDestroy)                                                                           \
    X(MatmulDescSetAttribute)                                                                      \
    X(MatrixLayoutCreate)                                                                          \
    X(MatrixLayoutDestroy)                                                                         \
    X(MatmulPreferenceCreate)                                                                      \
    X(MatmulPreferenceDestroy)                                                                     \
    X(MatmulPreferenceSetAttribute)                                                                \
    X(MatmulAlgoGetHeuristic)                                                                      \
    X(Matmul)

struct lt {
    void *library;
    cublasLtHandle_t handle;
#define LT_MEMBER(name) decltype(&cublasLt##name) name;
    LT_CALLS(LT_MEMBER)
#undef LT_MEMBER
    struct plan plan[PLANS_MAX];
    uint32_t plans;
};

static cudaDataType_t out_type(enum cuda_out kind)
{
    return kind == CUDA_OUT_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

/* Column-major views: out^T (w.rows x rows) = weight^T' (w.rows x cols) times x^T (cols x rows). */
static int choose(struct lt *lt, struct plan *p)
{
    uint32_t rows = p->few ? ROWS_FEW : ROWS_BULK;
    cublasOperation_t transpose = CUBLAS_OP_T;
    uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_NONE;
    size_t workspace = 0;
    cublasLtMatrixLayout_t x = NULL, out = NULL;
    cublasLtMatmulPreference_t wish = NULL;
    cublasLtMatmulHeuristicResult_t found;
    int count = 0;
    bool fine =
        !lt->MatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) &&
        !lt->MatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transpose,
                                    sizeof transpose) &&
        !lt->MatrixLayoutCreate(&p->weight, CUDA_R_16BF, p->cols, p->rows, p->cols) &&
        !lt->MatrixLayoutCreate(&x, CUDA_R_16BF, p->cols, rows, p->cols) &&
        !lt->MatrixLayoutCreate(&out, out_type(p->kind), p->rows, rows, (int64_t)p->out_stride) &&
        !lt->MatmulPreferenceCreate(&wish) &&
        !lt->MatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                          &workspace, sizeof workspace) &&
        !lt->MatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                          &schemes, sizeof schemes) &&
        !lt->MatmulAlgoGetHeuristic(lt->handle, p->desc, p->weight, x, out, out, wish, 1, &found,
                                    &count) &&
        count == 1;
    if (fine)
        p->algorithm = found.algo;
    if (wish)
        (void)lt->MatmulPreferenceDestroy(wish);
    if (x)
        (void)lt->MatrixLayoutDestroy(x);
    if (out)
        (void)lt->MatrixLayoutDestroy(out);
    return fine ? 0 : -EIO;
}

static const struct plan *plan_for(struct cuda *c, const struct cuda_weight *w, enum cuda_out kind,
                                   size_t out_stride)
{
    struct lt *lt = c->state->lt;
    for (uint32_t i = 0; i < lt->plans; i++) {
        const struct plan *p = &lt->plan[i];
        if (p->rows == w->rows && p->cols == w->cols && p->kind == kind && p->few == c->few &&
            p->out_stride == out_stride)
            return p;
    }
    struct plan *p = &lt->plan[lt->plans];
    if (lt->plans == PLANS_MAX) {
        cuda_fail(c, -EINVAL, "cuBLASLt", "more shapes of weights than there are plans for");
        return NULL;
    }
    *p = (struct plan){};
    p->rows = w->rows;
    p->cols = w->cols;
    p->kind = kind;
    p->few = c->few;
    p->out_stride = out_stride;
    if (choose(lt, p)) {
        cuda_fail(c, -EIO, "cuBLASLt", "no algorithm for a projection of this model");
        return NULL;
    }
    lt->plans++;
    return p;
}

static void matmul(struct cuda *c, void *out, enum cuda_out kind, size_t out_stride,
                   const struct cuda_weight *w, const bf16 *x, uint32_t rows)
{
    struct lt *lt = c->state->lt;
    const struct plan *p = rows ? plan_for(c, w, kind, out_stride) : NULL;
    if (!p)
        return;
    float one = 1, add = kind == CUDA_OUT_F32_ADD ? 1 : 0;
    cublasLtMatrixLayout_t in = NULL, to = NULL;
    cublasStatus_t status = lt->MatrixLayoutCreate(&in, CUDA_R_16BF, w->cols, rows, w->cols);
    if (!status)
        status = lt->MatrixLayoutCreate(&to, out_type(kind), w->rows, rows, (int64_t)out_stride);
    if (!status)
        status = lt->Matmul(lt->handle, p->desc, &one, w->data, p->weight, x, in, &add, out, to,
                            out, to, &p->algorithm, NULL, 0, c->state->stream);
    if (status) {
        char why[96];
        snprintf(why, sizeof why, "status %d for %u rows of %u x %u", (int)status, rows, w->rows,
                 w->cols);
        cuda_fail(c, -EIO, "cuBLASLt", why);
    }
    if (in)
        (void)lt->MatrixLayoutDestroy(in);
    if (to)
        (void)lt->MatrixLayoutDestroy(to);
}

int cuda_open_matmul(struct cuda *c, char *error, size_t error_bytes)
{
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12",
                                        "libcublasLt.so"};
    struct lt *lt = (struct lt *)calloc(1, sizeof *lt);
    if (!lt)
        return -ENOMEM;
    c->state->lt = lt;
    for (int i = 0; i < 3 && !lt->library; i++)
        lt->library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!lt->library) {
        snprintf(error, error_bytes,
                 "cannot load cuBLASLt (%s): install the CUDA libraries, or use --device cpu",
                 dlerror());
        return -ENODEV;
    }
#define LT_LOAD(name)                                                                              \
    lt->name = (decltype(lt->name))dlsym(lt->library, "cublasLt" #name);                           \
    if (!lt->name) {                                                                               \
        snprintf(error, error_bytes, "cuBLASLt has no cublasLt" #name ": it is too old");          \
        return -ENODEV;                                                                            \
    }
    LT_CALLS(LT_LOAD)
#undef LT_LOAD
    if (lt->Create(&lt->handle)) {
        snprintf(error, error_bytes, "cuBLASLt does not open on this device");
        return -ENODEV;
    }
    c->matmul = matmul;
    return 0;
}

void cuda_close_matmul(struct cuda *c)
{
    struct lt *lt = c->state->lt;
    if (!lt)
        return;
    for (uint32_t i = 0; i < lt->plans; i++) {
        (void)lt->MatrixLayoutDestroy(lt->plan[i].weight);
        (void)lt->MatmulDescDestroy(lt->plan[i].desc);
    }
    if (lt->handle)
        (void)lt->Destroy(lt->handle);
    if (lt->library)
        (void)dlclose(lt->library);
    free(lt);
    c->state->lt = NULL;
}
