// Runs a kernel's blocks one after the other, those of a cluster together, each CUDA thread as a fiber. A warp's instructions
// rendezvous its lanes; between those points the order of lanes and warps is drawn from a seed.
#pragma once
#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <array>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/time.h>

struct uint3 { unsigned int x, y, z; };

// What a kernel sees of its place; the scheduler sets them at each switch.
uint3 threadIdx, blockIdx, blockDim, gridDim;

// Gives the address of thread-local memory: of this library's, for a kernel's static shared memory.
struct TlsIndex { unsigned long module, offset; };
extern "C" void* __tls_get_addr(TlsIndex*);

namespace emulator {

using u8 = unsigned char;
using u32 = unsigned int;
using u64 = unsigned long long;

constexpr int WARP = 32;
constexpr u64 PAGE = 4096;
constexpr u64 STACK = 256 << 10;
constexpr u64 SHARED_LIMIT = 227 << 10; // a Hopper block's; the driver may ask for less
constexpr int BARRIERS = 16;

// Where a call was made. Printed as "@0x...", an offset in this library, which the driver turns into a source line.
using Site = const void*;

struct Random {
    u64 state;
    explicit Random(u64 seed) : state(seed * 0x9e3779b97f4a7c15ull + 0x632be59bd9b4e019ull) {
        for (int i = 0; i < 4; i++) next();
    }
    u64 next() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return state * 0x2545f4914f6cdd1dull >> 16;
    }
    int below(int n) { return (int)(next() % (u64)n); }
};

// Memory between two pages that cannot be touched. It ends at the second one.
struct Guarded {
    u8* mapping;
    u64 mapped;
    u8* end;
    explicit Guarded(u64 bytes) {
        u64 inner = (bytes + PAGE - 1) / PAGE * PAGE;
        mapped = inner + 2 * PAGE;
        mapping = (u8*)mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (mapping == MAP_FAILED) { perror("emulator: mmap"); abort(); }
        end = mapping + PAGE + inner;
        mprotect(mapping, PAGE, PROT_NONE);
        mprotect(end, PAGE, PROT_NONE);
    }
    ~Guarded() { munmap(mapping, mapped); }
    Guarded(const Guarded&) = delete;
    bool guards(const void* p) const {
        return (p >= mapping && p < mapping + PAGE) || (p >= end && p < end + PAGE);
    }
};

// A buffer of the caller's that a kernel may touch.
struct Buffer { const char* name; u64 address, bytes; };

// A launch as the driver describes it; `message` receives what went wrong.
struct Launch {
    u32 grid[3], threads[3], cluster[3];
    u64 shared_bytes;
    const void* params;
    u64 params_bytes;
    u64 seed;
    const Buffer* buffers;
    u64 buffer_count;
    double timeout;
    u32 in_order; // whether blocks run in that of their numbers
    char* message;
    u64 message_bytes;
};

struct Copy { u8* to; const u8* from; int bytes; bool valid; };

// Of one lane: its fiber, what it waits for, and its background copies.
struct Lane {
    void* stack_pointer;
    uint3 thread;
    int warp, lane;
    const char* operation; // while it waits for its warp
    u64 key;               // the operation's immediate operands
    u32 mask;
    const void* input;
    void* output;
    Site site;
    std::vector<Copy> open;               // copies not yet committed
    std::deque<std::vector<Copy>> groups; // committed ones, the oldest first
    u64 fenced;                           // the last write that it has shown to background products
    u32 mbarrier;                         // the one it waits at, where its warp has it neither ready nor waiting
    int meeting;                          // of the cluster's barrier, at which it has arrived
};

// The last one to two neighbouring bytes of shared memory.
struct Write { u64 number; int thread; };

struct Warp {
    u32 lanes, ready, waiting, done; // masks of lanes
    int barrier;                     // the barrier it waits at, or -1
    int flags;                       // how many of that barrier's threads had theirs set
    int priority;
    std::vector<std::function<void()>> open;               // background products not yet committed
    std::deque<std::vector<std::function<void()>>> groups; // committed ones, the oldest first
    std::map<const void*, int> awaited;                    // how many of them add to the same sums
};

enum class Arrival { Arrive, Wait, Reduce };

struct Barrier {
    int threads, arrived, flags;
    bool reduces;
    u32 warps; // those that have arrived
};

// One in shared memory, whose bytes hold MBARRIER.
constexpr u64 MBARRIER = 0x7265697272616d62ull;
struct Mbarrier {
    int count, phase;
    std::vector<const Lane*> arrived; // in this phase
    long long expected;               // bytes that copies have still to bring in it
};

struct Region { u8* base; u64 bytes; };

// A block that runs.
struct Block {
    uint3 index;
    std::unique_ptr<Guarded> shared;
    u8* shared_base;
    std::vector<Write> written;  // for every two bytes of dynamic shared memory
    u64 writes;
    std::vector<std::unique_ptr<Guarded>> stacks;
    std::vector<Lane> lanes;
    std::vector<Warp> warps;
    Barrier barriers[BARRIERS];
    std::map<u32, Mbarrier> mbarriers; // by address
};

// What runs, and the block that has its turn.
struct Machine : Block {
    const char* kernel;
    void (*body)();
    const Launch* launch;
    u64 library; // where it is loaded
    Region fixed;               // static shared memory
    std::vector<Block> cluster; // those that run together; the one that has its turn is not here
    int rank;                   // of that one
    int met, meetings;          // threads at the cluster's barrier; how often all have been there
    Random random{0};
    int copy_at_once;            // per cent
    Lane* current;
    void* scheduler_stack;
    sigjmp_buf failed;
    pthread_t runner;
    u64 clock;
};
Machine machine;

inline u32 bit(int lane) { return 1u << lane; }

inline u64 offset_of(Site site) { return (u64)site - machine.library; }

// Ends the launch with a message: where the thread is, and what is wrong.
[[noreturn]] __attribute__((noinline, format(printf, 1, 2))) void fail(const char* format, ...) {
    char* out = machine.launch->message;
    u64 left = machine.launch->message_bytes;
    auto advance = [&](int n) { u64 step = std::min<u64>(n < 0 ? 0 : n, left - 1); out += step; left -= step; };
    advance(snprintf(out, left, "%s, block (%u, %u, %u)", machine.kernel, blockIdx.x, blockIdx.y, blockIdx.z));
    if (machine.current)
        advance(snprintf(out, left, ", warp %d, lane %d", machine.current->warp, machine.current->lane));
    advance(snprintf(out, left, ": "));
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(out, left, format, arguments);
    va_end(arguments);
    siglongjmp(machine.failed, 1);
}

// ---- Fibers

extern "C" void emulator_switch(void** save, void* load) __attribute__((visibility("hidden")));
asm(R"(
    .text
    .globl emulator_switch
    .hidden emulator_switch
    .type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulator_switch, . - emulator_switch
)");

inline void suspend() { emulator_switch(&machine.current->stack_pointer, machine.scheduler_stack); }

inline void resume(Lane& lane) {
    machine.current = &lane;
    threadIdx = lane.thread;
    emulator_switch(&machine.scheduler_stack, lane.stack_pointer);
    machine.current = nullptr;
}

void finish(Lane& lane) {
    Warp& warp = machine.warps[lane.warp];
    for (u32 rest = warp.waiting; rest; rest &= rest - 1) {
        const Lane& other = machine.lanes[lane.warp * WARP + __builtin_ctz(rest)];
        if (other.mask & bit(lane.lane))
            fail("divergence: the lane has returned from the kernel while lane %d waits for it in %s @0x%llx", other.lane,
                 other.operation, offset_of(other.site));
    }
    warp.ready &= ~bit(lane.lane);
    warp.done |= bit(lane.lane);
    suspend();
}

void enter() {
    machine.body();
    finish(*machine.current);
    __builtin_unreachable();
}

// ---- A warp's collective operations

// Computes the results of the lanes in `mask` from their inputs: in[lane], out[lane].
using Compute = void (*)(const void* const* in, void* const* out, u32 mask);

[[noreturn]] inline void diverged(const Lane& a, const Lane& b) {
    fail("divergence: lane %d calls %s (operands 0x%llx, mask 0x%08x) @0x%llx\n"
         "  while lane %d waits in %s (operands 0x%llx, mask 0x%08x) @0x%llx",
         a.lane, a.operation, a.key, a.mask, offset_of(a.site), b.lane, b.operation, b.key, b.mask, offset_of(b.site));
}

// Waits for the lanes in `mask` to call the same operation; the last one computes for all.
__attribute__((noinline)) void rendezvous(const char* operation, u64 key, u32 mask, const void* in, void* out, Compute compute) {
    Lane& me = *machine.current;
    Warp& warp = machine.warps[me.warp];
    Lane* lanes = &machine.lanes[me.warp * WARP];
    me.operation = operation;
    me.key = key;
    me.mask = mask &= warp.lanes;
    me.input = in;
    me.output = out;
    me.site = (const u8*)__builtin_return_address(0) - 1;
    machine.clock++;

    if (!(mask & bit(me.lane)))
        fail("%s with mask 0x%08x, which lacks the calling lane @0x%llx", operation, mask, offset_of(me.site));
    if (mask & warp.done)
        fail("divergence: %s @0x%llx waits for lane %d, which has returned from the kernel", operation, offset_of(me.site),
             __builtin_ctz(mask & warp.done));
    // Two lanes that wait for each other must do so in the same operation. Others may first end what they do among themselves.
    u32 arrived = bit(me.lane);
    for (u32 rest = warp.waiting; rest; rest &= rest - 1) {
        const Lane& other = lanes[__builtin_ctz(rest)];
        if (!(other.mask & bit(me.lane)) || !(mask & bit(other.lane))) continue;
        bool same = other.mask == mask && other.key == key;
        if (!same || (other.operation != operation && strcmp(other.operation, operation) != 0)) diverged(me, other);
        arrived |= rest & -rest;
    }

    warp.waiting |= bit(me.lane);
    warp.ready &= ~bit(me.lane);
    if (arrived != mask) {
        suspend();
        return;
    }
    const void* inputs[WARP];
    void* outputs[WARP];
    for (u32 rest = mask; rest; rest &= rest - 1) {
        int lane = __builtin_ctz(rest);
        inputs[lane] = lanes[lane].input;
        outputs[lane] = lanes[lane].output;
    }
    compute(inputs, outputs, mask);
    warp.waiting &= ~mask;
    warp.ready |= mask;
}

template <class In, class Out>
inline __attribute__((always_inline)) Out collective(const char* operation, u64 key, u32 mask, const In& in, Compute compute) {
    Out out;
    rendezvous(operation, key, mask, &in, &out, compute);
    return out;
}

template <class T> const T& input_of(const void* const* in, int lane) { return *static_cast<const T*>(in[lane]); }
template <class T> T& output_of(void* const* out, int lane) { return *static_cast<T*>(out[lane]); }

// ---- Barriers of a block

inline int block_threads() { return (int)machine.warps.size() * WARP; }

struct BarrierCall { int id, threads; Arrival arrival; bool flag; };

// A whole warp arrives, as on hardware.
inline void arrive(const void* const* in, void* const*, u32 mask) {
    Warp& warp = machine.warps[machine.current->warp];
    const BarrierCall& call = input_of<BarrierCall>(in, __builtin_ctz(mask));
    u64 site = offset_of(machine.current->site);
    int limit = block_threads();
    if (call.id < 0 || call.id >= BARRIERS) fail("barrier %d @0x%llx: there are barriers 0 to 15", call.id, site);
    if (call.threads <= 0 || call.threads % WARP != 0 || call.threads > limit)
        fail("barrier %d @0x%llx: %d threads are no multiple of 32 up to the block's %d", call.id, site, call.threads,
             limit);
    Barrier& barrier = machine.barriers[call.id];
    bool reduces = call.arrival == Arrival::Reduce;
    if (barrier.arrived == 0) barrier = {call.threads, 0, 0, reduces, 0};
    if (barrier.threads != call.threads)
        fail("barrier %d @0x%llx: called for %d threads, by earlier warps (0x%08x) for %d", call.id, site, call.threads,
             barrier.warps, barrier.threads);
    if (barrier.reduces != reduces)
        fail("barrier %d @0x%llx: a reducing call meets one that does not reduce (warps 0x%08x)", call.id, site,
             barrier.warps);
    int index = machine.current->warp;
    if (barrier.warps & bit(index))
        fail("barrier %d @0x%llx: the warp arrives a second time, with %d of %d threads there (warps 0x%08x)", call.id, site,
             barrier.arrived, barrier.threads, barrier.warps);
    barrier.warps |= bit(index);
    barrier.arrived += WARP;
    for (u32 rest = mask; rest; rest &= rest - 1)
        barrier.flags += input_of<BarrierCall>(in, __builtin_ctz(rest)).flag;
    if (call.arrival != Arrival::Arrive) warp.barrier = call.id;
    if (barrier.arrived < barrier.threads) return;
    for (Warp& other : machine.warps)
        if (other.barrier == call.id) {
            other.barrier = -1;
            other.flags = barrier.flags;
        }
    barrier.arrived = 0;
    barrier.warps = 0;
}

// Returns how many of the barrier's threads have set `flag`, where the call reduces.
inline __attribute__((always_inline))
int barrier(const char* operation, int id, int threads, Arrival arrival, bool flag = false) {
    BarrierCall call{id, threads, arrival, flag};
    int nothing;
    rendezvous(operation, (u64)(u32)id << 32 | (u32)threads, ~0u, &call, &nothing, arrive);
    Warp& warp = machine.warps[machine.current->warp];
    if (warp.barrier != -1) suspend();
    return warp.flags;
}

// ---- Shared and global memory

// A kernel's __shared__ variables: all that this library has of thread-local memory.
inline Region static_shared() {
    Region found{};
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* region) {
            if (info->dlpi_addr != machine.library) return 0;
            for (int i = 0; i < info->dlpi_phnum; i++)
                if (info->dlpi_phdr[i].p_type == PT_TLS) {
                    TlsIndex start{info->dlpi_tls_modid, 0};
                    *static_cast<Region*>(region) = {(u8*)__tls_get_addr(&start), info->dlpi_phdr[i].p_memsz};
                }
            return 1;
        },
        &found);
    return found;
}

inline u64 dynamic_shared_offset() { return (machine.fixed.bytes + 1023) / 1024 * 1024; }

// Of the blocks that run together each has its own addresses.
inline u32 address_of(int rank, u32 address) { return (u32)rank << 24 | address % (1u << 24); }
inline u32 own_address(u32 address) { return address_of(machine.rank, address); }

// The 32-bit address in the shared window: static memory first, then the dynamic one.
__attribute__((noinline)) u32 shared_address(const void* p, u64 bytes = 0) {
    u64 site = offset_of(__builtin_return_address(0));
    const u8* at = (const u8*)p;
    const u8* base = machine.shared_base;
    if (at >= base && at + bytes <= base + machine.launch->shared_bytes)
        return own_address((u32)(at - base + dynamic_shared_offset()));
    const Region& fixed = machine.fixed;
    if (at >= fixed.base && at + bytes <= fixed.base + fixed.bytes) return own_address((u32)(at - fixed.base));
    fail("%llu bytes at %p are not in the block's shared memory: dynamic memory is %p + %lld, %llu bytes @0x%llx", bytes, p, base,
         (long long)(at - base), machine.launch->shared_bytes, site);
}

// The memory at an address that shared_address gave, after a look at bounds and alignment; that of one block.
__attribute__((noinline)) u8* shared_pointer(const char* operation, u32 address, u64 bytes, int rank = machine.rank) {
    if (address != address_of(rank, address)) fail("%s at 0x%x, which is in another block of the cluster", operation, address);
    address %= 1u << 24;
    u8* base = rank == machine.rank ? machine.shared_base : machine.cluster[rank].shared_base;
    u64 site = offset_of(__builtin_return_address(0)), dynamic = dynamic_shared_offset();
    const Region& fixed = machine.fixed;
    if (address % bytes) fail("%s of %llu bytes at the shared address %u @0x%llx", operation, bytes, address, site);
    if (address >= dynamic && address + bytes <= dynamic + machine.launch->shared_bytes) return base + (address - dynamic);
    if (address + bytes <= fixed.bytes) return (u8*)fixed.base + address;
    fail("%s of %llu bytes at %u, outside of the block's shared memory: %llu bytes from %llu on @0x%llx", operation, bytes, address,
         machine.launch->shared_bytes, dynamic, site);
}

// Writes to shared memory, of the current lane: background products see them only after its next fence.
inline void note_write(const void* p, u64 bytes) {
    machine.writes++;
    u64 first = (u64)((const u8*)p - machine.shared_base) / 2; // too large for static memory, which no product reads
    for (u64 i = first; i < first + (bytes + 1) / 2 && i < machine.written.size(); i++)
        machine.written[i] = {machine.writes, int(machine.current - machine.lanes.data())};
}
inline void fence_writes() { machine.current->fenced = machine.writes; }
inline void check_fenced(const char* operation, u32 address) {
    const Write& write = machine.written[(address % (1u << 24) - dynamic_shared_offset()) / 2];
    const Lane& writer = machine.lanes[write.thread];
    if (write.number > writer.fenced)
        fail("%s reads the shared address %u, which warp %d, lane %d wrote without a fence for it", operation, address, writer.warp,
             writer.lane);
}

inline void check_aligned(const char* operation, const void* p, u64 bytes) {
    if ((u64)p % bytes != 0)
        fail("%s: address %p is not aligned to %llu bytes @0x%llx", operation, p, bytes, offset_of(__builtin_return_address(0)));
}

// Where the driver has named its buffers, an access must lie inside one of them.
inline void check_global(const char* operation, const void* p, u64 bytes) {
    const Launch& launch = *machine.launch;
    if (launch.buffer_count == 0) return;
    u64 address = (u64)p;
    const Buffer* nearest = nullptr;
    for (const Buffer* b = launch.buffers; b != launch.buffers + launch.buffer_count; b++) {
        if (address >= b->address && address + bytes <= b->address + b->bytes) return;
        auto distance = [&](const Buffer* to) { return std::llabs((long long)(address - to->address)); };
        if (!nearest || distance(b) < distance(nearest)) nearest = b;
    }
    fail("%s: %llu bytes at %p are outside of all buffers; nearest is %s (%llu bytes), at its byte %lld @0x%llx", operation,
         bytes, p, nearest->name, nearest->bytes, (long long)(address - nearest->address),
         offset_of(__builtin_return_address(0)));
}

// ---- Barriers in shared memory, of single threads

// Its state is kept elsewhere; its bytes tell whether somebody has written over it.
inline Mbarrier& mbarrier_at(Block& block, const char* operation, u32 address, const u8* bytes) {
    u64 site = offset_of(machine.current->site);
    auto found = block.mbarriers.find(address);
    if (found == block.mbarriers.end()) fail("%s at %u, where no mbarrier has been made @0x%llx", operation, address, site);
    if (memcmp(bytes, &MBARRIER, sizeof MBARRIER) != 0)
        fail("%s at %u: something else was written there @0x%llx", operation, address, site);
    return found->second;
}

__attribute__((noinline)) void mbarrier_init(u32 address, int count) {
    machine.current->site = (const u8*)__builtin_return_address(0) - 1;
    u64 site = offset_of(machine.current->site);
    u8* bytes = shared_pointer("mbarrier init", address, sizeof MBARRIER);
    if (count < 1) fail("mbarrier init at %u for %d arrivals @0x%llx", address, count, site);
    if (!machine.mbarriers.insert({address, {count, 0, {}, 0}}).second)
        fail("mbarrier init at %u, where there is one @0x%llx", address, site);
    memcpy(bytes, &MBARRIER, sizeof MBARRIER);
}

// Lets those go on that wait there.
inline void wake(Block& block, u32 address) {
    for (Lane& lane : block.lanes) {
        Warp& warp = block.warps[lane.warp];
        bool waits = !((warp.ready | warp.waiting | warp.done) & bit(lane.lane));
        if (waits && lane.mbarrier == address) warp.ready |= bit(lane.lane);
    }
}

inline void end_phase(Block& block, u32 address, Mbarrier& barrier) {
    if ((int)barrier.arrived.size() < barrier.count || barrier.expected != 0) return;
    barrier.arrived.clear();
    barrier.phase++;
    wake(block, address);
}

inline Block& block_of(int rank) { return rank == machine.rank ? machine : machine.cluster[rank]; }

// In the block of that rank.
inline void mbarrier_arrive(int rank, u32 address, u64 bytes) {
    Block& block = block_of(rank);
    Mbarrier& barrier =
        mbarrier_at(block, "mbarrier arrive", address, shared_pointer("mbarrier arrive", address, sizeof MBARRIER, rank));
    auto& arrived = barrier.arrived;
    if (std::find(arrived.begin(), arrived.end(), machine.current) != arrived.end())
        fail("mbarrier arrive at %u: the thread arrives a second time, with %zu of %d arrivals there @0x%llx", address,
             arrived.size(), barrier.count, offset_of(machine.current->site));
    arrived.push_back(machine.current);
    barrier.expected += bytes;
    end_phase(block, address, barrier);
}
__attribute__((noinline)) void mbarrier_arrive(u32 address, u64 bytes = 0) {
    machine.current->site = (const u8*)__builtin_return_address(0) - 1;
    mbarrier_arrive(machine.rank, address, bytes);
}

// A copy in the background has brought so many bytes.
inline void mbarrier_complete(int rank, u32 address, u64 bytes) {
    Block& block = block_of(rank);
    Mbarrier& barrier =
        mbarrier_at(block, "mbarrier complete", address, shared_pointer("mbarrier complete", address, sizeof MBARRIER, rank));
    barrier.expected -= bytes;
    end_phase(block, address, barrier);
}

// Looks again whenever a phase ends: a thread that comes too late for the phase it waits for misses it.
__attribute__((noinline)) void mbarrier_wait(u32 address, int parity) {
    Lane& me = *machine.current;
    me.site = (const u8*)__builtin_return_address(0) - 1;
    const u8* bytes = shared_pointer("mbarrier wait", address, sizeof MBARRIER);
    while (mbarrier_at(machine, "mbarrier wait", address, bytes).phase % 2 == parity) {
        me.mbarrier = address;
        machine.warps[me.warp].ready &= ~bit(me.lane);
        suspend();
    }
}

// ---- The barrier of a cluster that runs together: as if at an mbarrier

constexpr u32 CLUSTER_BARRIER = ~0u;

inline void cluster_arrive() {
    machine.current->meeting = machine.meetings;
    if (++machine.met < (int)(machine.lanes.size() * machine.cluster.size())) return;
    machine.met = 0;
    machine.meetings++;
    wake(machine, CLUSTER_BARRIER);
    for (Block& block : machine.cluster) wake(block, CLUSTER_BARRIER);
}

__attribute__((noinline)) void cluster_wait() {
    Lane& me = *machine.current;
    me.site = (const u8*)__builtin_return_address(0) - 1;
    while (machine.meetings == me.meeting) {
        me.mbarrier = CLUSTER_BARRIER;
        machine.warps[me.warp].ready &= ~bit(me.lane);
        suspend();
    }
}

// ---- Background copies

inline void perform(const Copy& copy) {
    if (copy.valid) memcpy(copy.to, copy.from, copy.bytes);
    else memset(copy.to, 0, copy.bytes);
    note_write(copy.to, copy.bytes);
}

// The copy happens at once or as late as the program allows; until then its target is poison.
__attribute__((noinline)) void copy_async(void* shared, const void* global, int bytes, bool valid) {
    check_aligned("copy_async to shared memory", shared, bytes);
    check_aligned("copy_async from global memory", global, bytes);
    shared_address(shared, bytes);
    if (valid) check_global("copy_async", global, bytes);
    Copy copy{(u8*)shared, (const u8*)global, bytes, valid};
    if (machine.random.below(100) < machine.copy_at_once) {
        perform(copy);
        return;
    }
    memset(shared, 0xff, bytes);
    machine.current->open.push_back(copy);
}

inline void copy_async_commit() {
    machine.current->groups.push_back(std::move(machine.current->open));
    machine.current->open.clear();
}

inline void copy_async_wait(int pending) {
    auto& groups = machine.current->groups;
    for (; (int)groups.size() > pending; groups.pop_front())
        for (const Copy& copy : groups.front()) perform(copy);
}

// ---- Schedule

enum class Schedule { Fair, Bursts, Priorities };

[[noreturn]] void deadlock() {
    std::string text = "deadlock: no warp can go on";
    char line[256];
    for (size_t w = 0; w < machine.warps.size(); w++) {
        const Warp& warp = machine.warps[w];
        if (warp.done == warp.lanes) {
            snprintf(line, sizeof line, "\n  warp %zu has returned", w);
            text += line;
        } else if (warp.barrier != -1) {
            const Barrier& b = machine.barriers[warp.barrier];
            const Lane& lane = machine.lanes[w * WARP];
            snprintf(line, sizeof line, "\n  warp %zu waits in %s at barrier %d: %d of %d threads there (warps 0x%08x) @0x%llx",
                     w, lane.operation, warp.barrier, b.arrived, b.threads, b.warps, offset_of(lane.site));
            text += line;
        } else {
            u32 blocked = warp.lanes & ~(warp.waiting | warp.done);
            if (blocked) {
                const Lane& lane = machine.lanes[w * WARP + __builtin_ctz(blocked)];
                const Mbarrier& b = machine.mbarriers[lane.mbarrier];
                snprintf(line, sizeof line,
                         "\n  warp %zu, lanes 0x%08x wait at the mbarrier at %u: %zu of %d arrivals in phase %d @0x%llx",
                         w, blocked, lane.mbarrier, b.arrived.size(), b.count, b.phase, offset_of(lane.site));
                text += line;
            }
            for (u32 rest = warp.waiting; rest;) {
                const Lane& lane = machine.lanes[w * WARP + __builtin_ctz(rest)];
                snprintf(line, sizeof line, "\n  warp %zu, lanes 0x%08x of 0x%08x wait in %s @0x%llx", w,
                         warp.waiting & lane.mask, lane.mask, lane.operation, offset_of(lane.site));
                text += line;
                rest &= ~lane.mask;
            }
        }
    }
    fail("%s", text.c_str());
}

inline bool runnable(const Warp& warp) { return warp.barrier == -1 && warp.ready != 0; }

// Lets each ready lane run up to its next operation, beginning with a random one.
inline void run_pass(int index) {
    Warp& warp = machine.warps[index];
    int first = machine.random.below(WARP);
    for (int i = 0; i < WARP; i++) {
        int lane = (first + i) % WARP;
        if (warp.barrier != -1) return;
        if (warp.ready & bit(lane)) resume(machine.lanes[index * WARP + lane]);
    }
}

inline void prepare_block() {
    const Launch& launch = *machine.launch;
    machine.index = blockIdx;
    memset(machine.shared_base, 0xff, (launch.shared_bytes + 1023) / 1024 * 1024);
    if (machine.fixed.bytes > 0) memset(machine.fixed.base, 0xff, machine.fixed.bytes);
    memset(machine.barriers, 0, sizeof machine.barriers);
    machine.mbarriers.clear();
    machine.written.assign(launch.shared_bytes / 2, {});
    machine.writes = 0;

    int threads = (int)machine.lanes.size();
    for (int i = 0; i < threads; i++) {
        Lane& lane = machine.lanes[i];
        lane.thread = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        lane.warp = i / WARP;
        lane.lane = i % WARP;
        lane.open.clear();
        lane.groups.clear();
        lane.fenced = 0;
        // What emulator_switch pops: six registers and the address of `enter`; above it a return address, as after a call.
        void** stack = (void**)machine.stacks[i]->end;
        *--stack = nullptr;
        *--stack = (void*)enter;
        for (int r = 0; r < 6; r++) *--stack = nullptr;
        lane.stack_pointer = stack;
    }
    for (size_t w = 0; w < machine.warps.size(); w++) {
        int lanes = std::min(WARP, threads - (int)w * WARP);
        u32 mask = lanes == WARP ? ~0u : bit(lanes) - 1;
        machine.warps[w] = {mask, mask, 0, 0, -1, 0, machine.random.below(1 << 20), {}, {}, {}};
    }
}

// Gives the turn to a block of the cluster.
inline void select(int rank) {
    if (rank == machine.rank) return;
    std::swap<Block>(machine, machine.cluster[machine.rank]);
    std::swap<Block>(machine, machine.cluster[rank]);
    machine.rank = rank;
    blockIdx = machine.index;
}

// The blocks of a cluster, of which the first one is `first`.
void run_cluster(uint3 first, u64 number) {
    const Launch& launch = *machine.launch;
    machine.random = Random(launch.seed * 1000003 + number);
    machine.copy_at_once = machine.random.below(3) * 50;
    machine.met = machine.meetings = 0;
    int size = (int)machine.cluster.size();
    for (int rank = 0; rank < size; rank++) {
        select(rank);
        u32 x = rank % launch.cluster[0], y = rank / launch.cluster[0] % launch.cluster[1],
            z = rank / launch.cluster[0] / launch.cluster[1];
        blockIdx = {first.x + x, first.y + y, first.z + z};
        prepare_block();
    }
    auto schedule = (Schedule)machine.random.below(3);
    std::vector<int> candidates;
    for (;;) {
        bool finished = true, stuck = true;
        int start = machine.random.below(size);
        for (int i = 0; i < size; i++) {
            select((start + i) % size);
            candidates.clear();
            for (size_t w = 0; w < machine.warps.size(); w++) {
                if (runnable(machine.warps[w])) candidates.push_back((int)w);
                finished &= machine.warps[w].done == machine.warps[w].lanes;
            }
            if (candidates.empty()) continue;
            stuck = false;
            int chosen = candidates[machine.random.below((int)candidates.size())];
            int passes = schedule == Schedule::Fair ? 1 : 1 << machine.random.below(8);
            if (schedule == Schedule::Priorities)
                for (int w : candidates)
                    if (machine.warps[w].priority > machine.warps[chosen].priority) chosen = w;
            while (passes-- > 0 && runnable(machine.warps[chosen])) run_pass(chosen);
        }
        if (finished) return;
        if (stuck) deadlock();
    }
}

// ---- Launch

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGALRM};

void on_signal(int signal, siginfo_t* info, void* context) {
    if (signal == SIGALRM && !pthread_equal(pthread_self(), machine.runner)) {
        pthread_kill(machine.runner, SIGALRM);
        return;
    }
    u64 site = offset_of((Site)((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP]);
    const void* address = info->si_addr;
    switch (signal) {
    case SIGALRM: fail("still running after %g s @0x%llx", machine.launch->timeout, site);
    case SIGILL: fail("misaligned access, index outside of an array, shift too far, or __trap @0x%llx", site);
    case SIGFPE: fail("integer division by zero @0x%llx", site);
    }
    if (machine.shared && machine.shared->guards(address))
        fail("access to %p, byte %lld of %llu of dynamic shared memory @0x%llx", address,
             (long long)((u8*)address - machine.shared_base), machine.launch->shared_bytes, site);
    for (const auto& stack : machine.stacks)
        if (stack->guards(address)) fail("stack overflow: the thread's variables exceed %llu KiB @0x%llx", STACK >> 10, site);
    fail("access to %p, which is no memory of ours or misaligned for a vector @0x%llx", address, site);
}

// Catches what an ordinary access does wrong, and a kernel without end; restores everything when it goes.
class SignalHandlers {
    struct sigaction before[std::size(SIGNALS)];
    stack_t stack_before;
    std::vector<char> stack = std::vector<char>(64 << 10);

public:
    explicit SignalHandlers(double timeout) {
        stack_t own{stack.data(), 0, stack.size()};
        sigaltstack(&own, &stack_before);
        struct sigaction action = {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        for (size_t i = 0; i < std::size(SIGNALS); i++) sigaction(SIGNALS[i], &action, &before[i]);
        set_timer(timeout);
    }
    ~SignalHandlers() {
        set_timer(0);
        for (size_t i = 0; i < std::size(SIGNALS); i++) sigaction(SIGNALS[i], &before[i], nullptr);
        sigaltstack(&stack_before, nullptr);
    }
    static void set_timer(double seconds) {
        itimerval timer = {{0, 0}, {(time_t)seconds, (suseconds_t)((seconds - (double)(time_t)seconds) * 1e6)}};
        setitimer(ITIMER_REAL, &timer, nullptr);
    }
};

inline int run(const char* kernel, void (*body)(), const Launch& launch) {
    machine.kernel = kernel;
    machine.body = body;
    machine.launch = &launch;
    machine.runner = pthread_self();
    machine.current = nullptr;
    Dl_info own;
    dladdr((const void*)&suspend, &own);
    machine.library = (u64)own.dli_fbase;
    gridDim = {launch.grid[0], launch.grid[1], launch.grid[2]};
    blockDim = {launch.threads[0], launch.threads[1], launch.threads[2]};
    blockIdx = {};
    u64 threads = (u64)blockDim.x * blockDim.y * blockDim.z;
    u64 blocks = (u64)gridDim.x * gridDim.y * gridDim.z;
    u64 shared_bytes = (launch.shared_bytes + 1023) / 1024 * 1024;

    SignalHandlers handlers(launch.timeout);
    if (sigsetjmp(machine.failed, 1) != 0) return 1;
    if (threads == 0 || threads > 1024) fail("a block of %llu threads; it has 1 to 1024", threads);
    if (blocks == 0) fail("a grid of no blocks");
    machine.fixed = static_shared();
    if (machine.fixed.bytes > 48 << 10) fail("%llu bytes of static shared memory; 48 KiB is the limit", machine.fixed.bytes);
    if (dynamic_shared_offset() + launch.shared_bytes > SHARED_LIMIT)
        fail("%llu static and %llu dynamic bytes of shared memory; %llu is the limit", machine.fixed.bytes,
             launch.shared_bytes, SHARED_LIMIT);

    const u32* cluster = launch.cluster;
    u64 size = (u64)cluster[0] * cluster[1] * cluster[2];
    if (size == 0 || gridDim.x % cluster[0] || gridDim.y % cluster[1] || gridDim.z % cluster[2])
        fail("a grid of no whole clusters");
    if (size > 1 && machine.fixed.bytes > 0) fail("blocks of a cluster run together, but have only one static shared memory");
    machine.cluster.resize(size);
    machine.rank = 0;
    for (u64 rank = 0; rank < size; rank++) {
        select((int)rank);
        machine.shared = std::make_unique<Guarded>(shared_bytes);
        machine.shared_base = machine.shared->end - shared_bytes;
        while (machine.stacks.size() < threads) machine.stacks.push_back(std::make_unique<Guarded>(STACK));
        machine.lanes.resize(threads);
        machine.warps.resize((threads + WARP - 1) / WARP);
    }

    std::vector<u64> order(blocks / size);
    std::iota(order.begin(), order.end(), 0);
    Random random(launch.seed);
    for (u64 i = launch.in_order ? 0 : order.size(); i > 1; i--) std::swap(order[i - 1], order[random.next() % i]);
    u32 across = gridDim.x / cluster[0], down = gridDim.y / cluster[1];
    for (u64 number : order) {
        u32 x = number % across, y = number / across % down, z = number / across / down;
        run_cluster({x * cluster[0], y * cluster[1], z * cluster[2]}, number);
    }
    return 0;
}

// The kernel and its parameter, for fibers to call.
template <auto Kernel> struct Entry;
template <class Params, void (*Kernel)(Params)> struct Entry<Kernel> {
    static void body() { Kernel(*static_cast<const Params*>(machine.launch->params)); }
    static int run(const char* name, const Launch& launch) {
        if (launch.params_bytes != sizeof(Params)) {
            snprintf(launch.message, launch.message_bytes, "%s: its parameter is of %zu bytes, the one given of %llu", name,
                     sizeof(Params), launch.params_bytes);
            return 1;
        }
        return emulator::run(name, body, launch);
    }
};

} // namespace emulator
