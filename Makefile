# silt: `make help` lists the targets. Dependencies are Debian packages found by pkg-config; `make deps` installs them.

SHELL := /bin/bash
MAKEFLAGS += --no-builtin-rules
.SUFFIXES:
.DELETE_ON_ERROR:
.SECONDARY:
.DEFAULT_GOAL := all

# One build folder for each way of building, so that a sanitizer never mixes with a release object.
SANITIZER ?=
O := build$(if $(SANITIZER),/$(SANITIZER))
V ?= 0
Q := $(if $(filter 1,$(V)),,@)
say = $(if $(filter 1,$(V)),,@printf '  %-5s %s\n' '$(1)' '$(2)')

CC ?= cc
ifeq ($(origin CC),default)
CC := cc
endif
PACKAGES := libzmq libprotobuf-c sqlite3 libxxhash libutf8proc liburing libseccomp
WARNINGS := -Wall -Wextra -Wpedantic -Wshadow -Wconversion $(if $(CI),-Werror)
OPTIMISE := -O2 $(if $(SANITIZER),-fno-omit-frame-pointer)
CFLAGS ?= -g
# -ffp-contract=off: every path rounds as the reference says; a fused multiply-add is written where it is meant.
override CFLAGS += -std=c17 -D_GNU_SOURCE $(OPTIMISE) $(WARNINGS) -ffp-contract=off -fno-math-errno \
                   $(if $(SANITIZER),-fsanitize=$(SANITIZER) -fno-sanitize-recover=all)
CPPFLAGS += -I. $(shell pkg-config --cflags $(PACKAGES) 2>/dev/null)
LDFLAGS += $(if $(SANITIZER),-fsanitize=$(SANITIZER))
LDLIBS := $(shell pkg-config --libs $(PACKAGES) 2>/dev/null) -lm -pthread

comma := ,
# Objects are x.c.o, so that norm.c and norm.cu can share a name.
objects = $(patsubst %,$(O)/obj/%.o,$(1))
# CUDA is compiled in where nvcc is found; CUDA=0 leaves it out. A sanitizer's build runs no device code.
NVCC ?= $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
CUDA ?= $(if $(and $(NVCC),$(if $(SANITIZER),,1)),1,0)
CUDA_ARCH ?= 90
ifeq ($(CUDA),1)
CUDA_HOME ?= $(abspath $(dir $(realpath $(NVCC)))/..)
NVCCFLAGS := -std=c++17 -O3 -I. -lineinfo -gencode arch=compute_$(CUDA_ARCH),code=[sm_$(CUDA_ARCH),compute_$(CUDA_ARCH)] \
             -Xcompiler -Wall,-Wextra$(if $(CI),$(comma)-Werror)
LDLIBS += $(firstword $(wildcard $(CUDA_HOME)/lib64/libcudart_static.a $(CUDA_HOME)/lib/libcudart_static.a)) \
          -Wl,--as-needed -ldl -lrt -lstdc++ -Wl,--no-as-needed
KERNELS := $(call objects,$(filter-out kernels/no_cuda.c,$(wildcard kernels/*.c)) $(wildcard kernels/*.cu))
else
KERNELS := $(call objects,$(wildcard kernels/*.c))
endif
STREAM := $(call objects,$(wildcard stream/*.c))
PROTO := $(call objects,$(wildcard proto/*.c))
DAEMON := $(call objects,$(filter-out daemon/main.c,$(wildcard daemon/*.c)))
CLIENT := $(call objects,$(wildcard clients/*.c))
SILT := $(call objects,$(wildcard clients/silt/*.c))
EVAL := $(call objects,$(wildcard tests/eval/*.c))
UNIT := $(patsubst tests/unit/%.c,$(O)/tests/%,$(wildcard tests/unit/test_*.c))

.PHONY: all cuda help deps model test check bench bench-instructions demo soak fuzz quality facts adapter clean format tidy proto proto-check install
all: $(O)/siltd $(O)/silt $(O)/silt-eval $(O)/silt-gateway

$(O)/siltd: $(O)/obj/daemon/main.c.o $(DAEMON) $(STREAM) $(KERNELS) $(PROTO)
$(O)/silt: $(SILT) $(CLIENT) $(PROTO)
$(O)/silt: private LDLIBS += $(shell pkg-config --libs jansson ncursesw 2>/dev/null)
GATEWAY := $(call objects,$(wildcard clients/gateway/*.c))
$(O)/silt-gateway: $(GATEWAY) $(CLIENT) $(PROTO)
$(O)/silt-gateway: private LDLIBS += $(shell pkg-config --libs libmicrohttpd jansson 2>/dev/null)
$(O)/obj/clients/gateway/page.c.o: $(wildcard clients/gateway/web/*)
$(O)/silt-eval: $(EVAL) $(STREAM) $(KERNELS)
$(O)/silt-eval $(O)/emulated/silt-eval: private LDLIBS += $(shell pkg-config --libs jansson libzstd 2>/dev/null)
$(O)/check: $(call objects,$(wildcard tests/check/*.c)) $(KERNELS)
$(O)/bench-%: $(O)/obj/tests/bench/%.c.o $(STREAM) $(KERNELS)
	$(call say,LINK,$@)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)
check: $(O)/check
	$(Q)$(O)/check

# siltd with nothing to compute, and what feeds it (tests/bench/idle.c).
WRAPPED := forward_run ccm_close_chunk sched_checkpoint search_main
$(O)/siltd-idle: $(O)/obj/daemon/main.c.o $(O)/obj/tests/bench/idle.c.o $(DAEMON) $(STREAM) $(KERNELS) $(PROTO)
	$(call say,LINK,$@)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $(WRAPPED:%=-Wl,--wrap=%) -o $@ $^ $(LDLIBS)
$(O)/bench-wire: $(O)/obj/tests/bench/wire.c.o $(CLIENT) $(PROTO) $(call objects,$(addprefix stream/,gguf.c pretoken.c token.c vocab.c))
	$(call say,LINK,$@)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# The hot paths under callgrind (tests/bench/hot.c).
$(O)/bench-hot: $(call objects,tests/bench/hot.c tests/bench/hot_search.c) $(O)/parts.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

bench: $(O)/bench-engine $(O)/bench-disk $(O)/check $(O)/siltd $(O)/silt $(O)/siltd-idle $(O)/bench-wire $(O)/tests/token-dump
	$(Q)BUILD=$(O) FIRST_TOKEN=$(FIRST_TOKEN) tests/bench/run
	$(Q)BUILD=$(O) CSV=$(CSV:.csv=-disk.csv) tests/bench/disk || [ $$? = 77 ]
# Streams whose first token is measured; 4096,1048576 takes minutes.
FIRST_TOKEN ?= 4096,16384

bench-instructions: $(O)/bench-hot build/tests/make-tiny
	$(Q)BUILD=$(O) tests/bench/instructions || [ $$? = 77 ]

$(O)/endless: $(call objects,$(wildcard soak/*.c)) $(CLIENT) $(PROTO)
soak: $(O)/endless $(O)/siltd $(O)/silt $(O)/sim build/tests/make-tiny build/tests/fault-io.so \
      $(addprefix $(O)/tests/test_,rot alloc fault checkpoint_fault recall_fault spill_fault)
	$(Q)BUILD=$(O) soak/run

$(O)/siltd $(O)/silt $(O)/silt-eval $(O)/silt-gateway $(O)/check $(O)/endless:
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# A unit test may use every part, and takes from the archive what it does use; the daemon comes without its main.
TEST_HELPERS := $(call objects,$(filter-out $(wildcard tests/unit/test_*.c),$(wildcard tests/unit/*.c)))
$(O)/parts.a: $(TEST_HELPERS) $(DAEMON) $(CLIENT) $(STREAM) $(KERNELS) $(PROTO)
	@rm -f $@
	$(Q)ar rcs $@ $^
$(UNIT): $(O)/tests/%: $(O)/obj/tests/unit/%.c.o $(O)/parts.a
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS) -lcmocka

$(O)/tests/test_client: private LDLIBS += -Wl,--wrap=zmq_recv
$(O)/tests/test_sched: private LDLIBS += -Wl,--wrap=stream_state
$(O)/tests/test_search_gone: private LDLIBS += -Wl,--wrap=files_sync_folder
$(O)/tests/test_serve: private LDLIBS += -Wl,--wrap=zmq_send
$(O)/tests/test_stats: private LDLIBS += -Wl,--wrap=stream_stat,--wrap=reply_send
# The command's parts are in no archive: its names are its own.
$(O)/tests/test_convert: $(call objects,clients/silt/convert.c clients/silt/stamp.c)

# The daemon's core under made-up schedules; the fake engine stands before the real one.
$(O)/sim: $(call objects,$(wildcard tests/sim/*.c)) $(O)/parts.a
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# The GPU's kernels, run on the CPU: their logic is tested where there is no GPU (tests/emulate/simt.h).
EMULATED := $(patsubst %,$(O)/emulate/%.o,$(filter-out kernels/matmul.cu,$(wildcard kernels/*.cu)) tests/emulate/runtime.cu tests/emulate/simt.cu)
$(O)/emulate/%.cu.o: %.cu $(wildcard kernels/*.cuh tests/emulate/*.h) kernels/cuda.h kernels/kernels.h $(O)/flags
	$(call say,CXX,$<)
	@mkdir -p $(@D)
	$(Q)$(CXX) -x c++ -std=c++17 -O2 -g -ffp-contract=off -Itests/emulate -I. -Wall -Wextra -Wno-unknown-pragmas \
	    -Wno-missing-field-initializers $(if $(CI),-Werror) -c -o $@ $<
EMULATED += $(filter-out %.cu.o %/no_cuda.c.o,$(KERNELS))
$(O)/tests/test-gpu $(O)/tests/test-gpu_rest $(O)/tests/test-gpu_leave: $(O)/tests/test-%: $(O)/obj/tests/emulate/test_%.c.o \
        $(call objects,tests/emulate/gpu_rig.c tests/unit/tiny_model.c) $(STREAM) $(EMULATED)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS) -lcmocka -lstdc++

# The same tests, on the device that is there.
$(O)/tests/device-gpu $(O)/tests/device-gpu_rest $(O)/tests/device-gpu_leave: $(O)/tests/device-%: $(O)/obj/tests/emulate/test_%.c.o \
        $(call objects,tests/emulate/gpu_rig.c tests/unit/tiny_model.c tests/emulate/real.cu) $(STREAM) $(KERNELS)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS) -lcmocka

$(O)/tests/check-emulated: $(call objects,$(wildcard tests/check/*.c)) $(EMULATED)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS) -lstdc++

# silt-eval with that device behind --device cuda.
$(O)/emulated/silt-eval: $(EVAL) $(STREAM) $(EMULATED)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS) -lstdc++

# siltd with that device behind --device cuda, beside a silt for lib.py to find.
$(O)/emulated/siltd: $(O)/obj/daemon/main.c.o $(DAEMON) $(STREAM) $(EMULATED) $(PROTO) $(O)/silt
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	@ln -sf ../silt $(@D)/silt
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $(filter-out $(O)/silt,$^) $(LDLIBS) -lstdc++

# The corpus of a fuzz target, once through, without libFuzzer.
$(O)/fuzz-%: $(O)/obj/tests/fuzz/fuzz_%.c.o $(O)/obj/tests/fuzz/replay.c.o $(O)/parts.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# Small programs for scripts: the tiny model, the tokens of a text, and what questions find in it.
$(O)/tests/make-tiny: $(call objects,tests/make_tiny.c tests/unit/tiny_model.c) $(KERNELS)
$(O)/tests/token-dump: $(call objects,tests/token_dump.c stream/gguf.c stream/pretoken.c stream/token.c stream/vocab.c)
$(O)/tests/eval-find: $(call objects,tests/eval_find.c) $(O)/parts.a
$(O)/tests/make-tiny $(O)/tests/token-dump $(O)/tests/eval-find:
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# File calls that fail on purpose, for a program that runs (tests/e2e/test_fault.py).
$(O)/tests/fault-io.so: tests/e2e/fault_io.c $(O)/flags
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(filter-out -fsanitize%,$(CFLAGS)) -shared -fPIC -o $@ $< -ldl

# Instruction sets go by file name; the table picks at run time.
$(O)/obj/kernels/%_avx2.c.o: private override CFLAGS += -mavx2 -mfma -mf16c -mbmi2
$(O)/obj/kernels/%_avxvnni.c.o: private override CFLAGS += -mavx2 -mfma -mf16c -mbmi2 -mavxvnni
$(O)/obj/kernels/%_avx512.c.o: private override CFLAGS += -mavx2 -mfma -mf16c -mbmi2 -mavx512f -mavx512bw -mavx512dq -mavx512vl \
                                        -mavx512vnni -mprefer-vector-width=512
$(O)/obj/kernels/%_avx512bf16.c.o: private override CFLAGS += -mavx2 -mfma -mf16c -mbmi2 -mavx512f -mavx512bw -mavx512dq \
                                        -mavx512vl -mavx512vnni -mavx512bf16 -mprefer-vector-width=512
# Generated code is held to no style of ours.
$(O)/obj/proto/%.c.o: private override CFLAGS += -w

$(O)/obj/%.c.o: %.c $(O)/flags
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

# Hopper's own instructions, for that one file, are of no other device's.
ifeq ($(CUDA_ARCH),90)
$(O)/obj/kernels/gated.cu.o: private NVCCFLAGS := $(subst _90,_90a,$(NVCCFLAGS)) -DSILT_HOPPER
endif
$(O)/obj/%.cu.o: %.cu $(wildcard kernels/*.cuh) kernels/cuda.h kernels/kernels.h $(O)/flags
	$(call say,NVCC,$<)
	@mkdir -p $(@D)
	$(Q)$(NVCC) $(NVCCFLAGS) -c -o $@ $<

cuda:
	$(Q)test '$(CUDA)' = 1 || { echo 'make cuda: nvcc was not found: install the CUDA toolkit, or name it: make NVCC=PATH' >&2; exit 1; }
	$(Q)$(MAKE) all

# Rebuilds when the flags change.
$(O)/flags: FORCE
	@mkdir -p $(@D)
	@pkg-config --exists $(PACKAGES) jansson libzstd || { echo 'make: packages are missing: run make deps' >&2; exit 1; }
	@echo '$(CC) $(CPPFLAGS) $(CFLAGS) $(NVCCFLAGS)' | cmp -s - $@ || echo '$(CC) $(CPPFLAGS) $(CFLAGS) $(NVCCFLAGS)' > $@
.PHONY: FORCE
FORCE:

-include $(shell find $(O)/obj -name '*.d' 2>/dev/null)

proto: proto/silt.pb-c.c
proto/silt.pb-c.c: proto/silt.proto
	$(call say,PROTO,$<)
	$(Q)cd proto && protoc-c --c_out=. silt.proto
	$(Q)protoc --proto_path=proto --python_out=clients/python/silt --pyi_out=clients/python/silt silt.proto

# Set-up and whole runs are scripts: they work before anything is installed.
deps:
	$(Q)daemon/dist/deps.sh
model:
	$(Q)daemon/dist/model.sh
demo:
	$(Q)daemon/dist/demo.sh
test:
	$(Q)tests/run
tidy:
	$(Q)tests/tidy
quality: $(O)/silt-eval $(O)/tests/eval-find
	$(Q)python3 tests/eval/quality.py $(QUALITY)
facts: all $(O)/tests/token-dump $(O)/tests/eval-find
	$(Q)tests/eval/facts.py --text '$(FACTS)' --data $(O)/facts $(FACTS_OPTIONS)
adapter:
	$(Q)$(MAKE) --no-print-directory -C stream/retrofit adapter MODEL='$(abspath $(MODEL))' \
	    TEXT='$(abspath $(TEXT))' $(if $(OUT),OUT='$(abspath $(OUT))')
fuzz:
	$(Q)tests/fuzz/run $(SECONDS_EACH)
proto-check:
	$(Q)tests/proto-check

help:
	@sed -n 's/^#: //p' $(MAKEFILE_LIST)
#: make            build/siltd, build/silt, build/silt-eval and build/silt-gateway
#: make cuda       the same, and an error where nvcc is not found; CUDA=0 leaves CUDA out; CUDA_ARCH=90
#: make deps       install what the build and the tests need (Debian packages)
#: make model      fetch the default model, 98 MB, to build/models
#: make demo       all of the above, then silt at work on text of this machine
#: make test       all that CI runs; TESTS=WORD runs those whose name has WORD in it, TESTS_JOBS=N N side by side
#: make check      each kernel against its reference
#: make bench      speed of kernels, engine, disk and siltd; FIRST_TOKEN=4096,16384 lengths of streams that are asked
#: make bench-instructions  hot paths counted under valgrind, beside their baseline; the same on a busy machine
#: make soak       one endless stream, then kills, damage and faults; MINUTES=30 endless, churn, chaos, feed, budget and flat
#: make quality    what compression costs, against windows of equal size; QUALITY=FOLDER of texts
#: make facts      far facts planted in streams: found by words, by keys, by both; FACTS=FOLDER of dialogue, meeting, log
#: make adapter    an adapter for MODEL=GGUF, trained on TEXT=FOLDER of JSON lines (PyTorch, a GPU); MINUTES=25
#: make fuzz       hostile files and text; SECONDS_EACH=60
#: make format     clang-format all sources; make tidy checks the other rules of style
#: make proto      C code from proto/silt.proto; make proto-check says if it is current
#: make install    to PREFIX (/usr/local) under DESTDIR; make uninstall takes it away again
#: make deb        a Debian package in build/deb
#: make clean      forget objects and programs, keep the model
#: Variables: CI=1 warnings are errors; SANITIZER=address|undefined|thread; V=1 shows commands

PREFIX ?= /usr/local
install: all
	$(Q)O='$(O)' PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' daemon/dist/install.sh install
uninstall:
	$(Q)O='$(O)' PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' daemon/dist/install.sh uninstall
deb:
	$(Q)daemon/dist/deb.sh
.PHONY: uninstall deb

format:
	$(Q)clang-format -i $$(git ls-files '*.c' '*.h' '*.cu' | grep -v pb-c)

clean:
	$(Q)rm -rf build/obj build/tests build/check build/siltd build/silt build/silt-eval build/silt-gateway build/address* build/undefined \
	             build/thread
