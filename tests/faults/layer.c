// A Vulkan layer that makes the n-th call of a kind fail, as drivers do when memory runs out or the device is lost.
//
// C, because a layer is a table of C functions and nothing else: one file, no headers of Vulkan's, compiled in half a second.
// main.rs compiles it, and says what is to fail in a file (FAULT_CONTROL) that both map; `struct control` is its layout.
//
// A device that was reported lost stays lost: its submissions, waits and counters answer so, as those of drivers do. Before a
// wait or submission fails, the work under way is finished, so that what is freed afterwards is not in use.
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef int32_t VkResult;
typedef void (*Function)(void);
typedef void *Handle;      // dispatchable: begins with the address of the loader's table, one per instance or device
typedef uint64_t Id;       // not dispatchable
typedef Function (*GetInstanceProc)(Handle, const char *);
typedef Function (*GetDeviceProc)(Handle, const char *);

enum { SUCCESS = 0, LOST = -4, INITIALIZATION_FAILED = -3 };

// Kinds of calls, in the order of `KINDS` in main.rs. What Vulkan lets only succeed (freeing descriptor sets) is not among them.
enum kind {
    ALLOCATE, CREATE_BUFFER, BIND, MAP, SUBMIT, WAIT_IDLE, WAIT_SEMAPHORES, COUNTER, FENCES, CREATE_SYNC, PIPELINES, SHADER,
    LAYOUTS, DESCRIPTOR_POOL, DESCRIPTOR_SETS, COMMAND_POOL, COMMAND_BUFFERS, BEGIN, END, PIPELINE_CACHE,
    FLUSH, CREATE_DEVICE, CREATE_INSTANCE, ENUMERATE, NUM_KINDS
};

struct control {
    int32_t kind;      // which calls are to fail
    int32_t error;     // with what
    int64_t nth;       // which of them, from 1; 0 for none
    int64_t onward;    // and all after it
    int64_t failed;    // how many did
    int64_t calls[NUM_KINDS];
};

static struct control *control(void) {
    static struct control *mapped;
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    if (!mapped) {
        const char *path = getenv("FAULT_CONTROL");
        int file = path ? open(path, O_RDWR) : -1;
        void *at = file < 0 ? MAP_FAILED : mmap(0, sizeof *mapped, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        static struct control none;
        mapped = at == MAP_FAILED ? &none : at;
        if (file >= 0) close(file);
    }
    pthread_mutex_unlock(&lock);
    return mapped;
}

// Calls on a device: kind, whether drivers report there that it was lost, name, parameters, and these once more.
#define DEVICE_CALLS(W)                                                                                                        \
    W(ALLOCATE, 0, vkAllocateMemory, (Handle at, void *a, void *b, Id *c), at, a, b, c)                                        \
    W(CREATE_BUFFER, 0, vkCreateBuffer, (Handle at, void *a, void *b, Id *c), at, a, b, c)                                     \
    W(BIND, 0, vkBindBufferMemory, (Handle at, Id a, Id b, uint64_t c), at, a, b, c)                                           \
    W(MAP, 0, vkMapMemory, (Handle at, Id a, uint64_t b, uint64_t c, uint32_t d, void **e), at, a, b, c, d, e)                 \
    W(SUBMIT, 1, vkQueueSubmit, (Handle at, uint32_t a, void *b, Id c), at, a, b, c)                                           \
    W(SUBMIT, 1, vkQueueSubmit2, (Handle at, uint32_t a, void *b, Id c), at, a, b, c)                                          \
    W(SUBMIT, 1, vkQueueSubmit2KHR, (Handle at, uint32_t a, void *b, Id c), at, a, b, c)                                       \
    W(WAIT_IDLE, 1, vkQueueWaitIdle, (Handle at), at)                                                                          \
    W(WAIT_IDLE, 1, vkDeviceWaitIdle, (Handle at), at)                                                                         \
    W(WAIT_SEMAPHORES, 1, vkWaitSemaphores, (Handle at, void *a, uint64_t b), at, a, b)                                        \
    W(WAIT_SEMAPHORES, 1, vkWaitSemaphoresKHR, (Handle at, void *a, uint64_t b), at, a, b)                                     \
    W(COUNTER, 1, vkGetSemaphoreCounterValue, (Handle at, Id a, uint64_t *b), at, a, b)                                        \
    W(COUNTER, 1, vkGetSemaphoreCounterValueKHR, (Handle at, Id a, uint64_t *b), at, a, b)                                     \
    W(FENCES, 1, vkWaitForFences, (Handle at, uint32_t a, Id *b, uint32_t c, uint64_t d), at, a, b, c, d)                      \
    W(FENCES, 1, vkGetFenceStatus, (Handle at, Id a), at, a)                                                                   \
    W(FENCES, 0, vkResetFences, (Handle at, uint32_t a, Id *b), at, a, b)                                                      \
    W(CREATE_SYNC, 0, vkCreateFence, (Handle at, void *a, void *b, Id *c), at, a, b, c)                                        \
    W(CREATE_SYNC, 0, vkCreateSemaphore, (Handle at, void *a, void *b, Id *c), at, a, b, c)                                    \
    W(PIPELINES, 0, vkCreateComputePipelines, (Handle at, Id a, uint32_t b, void *c, void *d, Id *e), at, a, b, c, d, e)       \
    W(SHADER, 0, vkCreateShaderModule, (Handle at, void *a, void *b, Id *c), at, a, b, c)                                      \
    W(LAYOUTS, 0, vkCreatePipelineLayout, (Handle at, void *a, void *b, Id *c), at, a, b, c)                                   \
    W(LAYOUTS, 0, vkCreateDescriptorSetLayout, (Handle at, void *a, void *b, Id *c), at, a, b, c)                              \
    W(DESCRIPTOR_POOL, 0, vkCreateDescriptorPool, (Handle at, void *a, void *b, Id *c), at, a, b, c)                           \
    W(DESCRIPTOR_SETS, 0, vkAllocateDescriptorSets, (Handle at, void *a, Id *b), at, a, b)                                     \
    W(COMMAND_POOL, 0, vkCreateCommandPool, (Handle at, void *a, void *b, Id *c), at, a, b, c)                                 \
    W(COMMAND_POOL, 0, vkResetCommandPool, (Handle at, Id a, uint32_t b), at, a, b)                                            \
    W(COMMAND_BUFFERS, 0, vkAllocateCommandBuffers, (Handle at, void *a, Handle *b), at, a, b)                                 \
    W(BEGIN, 0, vkBeginCommandBuffer, (Handle at, void *a), at, a)                                                             \
    W(END, 0, vkEndCommandBuffer, (Handle at), at)                                                                             \
    W(PIPELINE_CACHE, 0, vkCreatePipelineCache, (Handle at, void *a, void *b, Id *c), at, a, b, c)                             \
    W(PIPELINE_CACHE, 0, vkGetPipelineCacheData, (Handle at, Id a, size_t *b, void *c), at, a, b, c)                           \
    W(FLUSH, 0, vkFlushMappedMemoryRanges, (Handle at, uint32_t a, void *b), at, a, b)                                         \
    W(FLUSH, 0, vkInvalidateMappedMemoryRanges, (Handle at, uint32_t a, void *b), at, a, b)

// And on an instance.
#define INSTANCE_CALLS(W) W(vkCreateDevice) W(vkDestroyInstance) W(vkEnumeratePhysicalDevices) W(vkEnumerateDeviceExtensionProperties)

#define DEVICE_INDEX(kind, notices, name, ...) CALL_##name,
#define INSTANCE_INDEX(name) CALL_##name,
enum call { DEVICE_CALLS(DEVICE_INDEX) CALL_vkDestroyDevice, INSTANCE_CALLS(INSTANCE_INDEX) NUM_CALLS };
#define DEVICE_NAME(kind, notices, name, ...) #name,
#define INSTANCE_NAME(name) #name,
static const char *const names[NUM_CALLS] = {DEVICE_CALLS(DEVICE_NAME) "vkDestroyDevice", INSTANCE_CALLS(INSTANCE_NAME)};

// What is known of an instance or a device. The next layer's functions are asked for when it is made: later, the loader answers
// with those of the first layer.
struct owner {
    void *key;
    Handle handle;
    GetInstanceProc instance_proc;
    GetDeviceProc device_proc;
    _Atomic int lost;
    Function calls[NUM_CALLS];
};

static struct owner owners[256];
static pthread_mutex_t owners_lock = PTHREAD_MUTEX_INITIALIZER;
static GetInstanceProc last_instance_proc;

static void *key_of(Handle handle) { return *(void **)handle; }

static struct owner *find(void *key) {
    struct owner *found = 0;
    pthread_mutex_lock(&owners_lock);
    for (int i = 0; i < 256 && !found; i++)
        if (owners[i].key == key) found = &owners[i];
    pthread_mutex_unlock(&owners_lock);
    return found;
}

static void add(Handle handle, GetInstanceProc instance_proc, GetDeviceProc device_proc) {
    pthread_mutex_lock(&owners_lock);
    int free = 0;
    while (free < 255 && owners[free].key && owners[free].key != key_of(handle)) free++;
    struct owner *owner = &owners[free];
    *owner = (struct owner){.key = key_of(handle), .handle = handle, .instance_proc = instance_proc, .device_proc = device_proc};
    for (int call = 0; call < NUM_CALLS; call++)
        owner->calls[call] = device_proc ? device_proc(handle, names[call]) : instance_proc(handle, names[call]);
    pthread_mutex_unlock(&owners_lock);
}

// The next layer's function, of a device or of an instance.
static Function next(struct owner *owner, const char *name) {
    return owner->device_proc ? owner->device_proc(owner->handle, name) : owner->instance_proc(owner->handle, name);
}

static void finish(struct owner *device) {
    VkResult (*idle)(Handle) = (VkResult(*)(Handle))device->calls[CALL_vkDeviceWaitIdle];
    if (idle) idle(device->handle);
}

// Counts a call. The error it is to fail with, or 0.
static VkResult fault(enum kind kind) {
    struct control *c = control();
    int64_t number = __atomic_add_fetch(&c->calls[kind], 1, __ATOMIC_SEQ_CST);
    if (c->nth == 0 || c->kind != (int32_t)kind) return SUCCESS;
    if (c->onward ? number < c->nth : number != c->nth) return SUCCESS;
    __atomic_add_fetch(&c->failed, 1, __ATOMIC_SEQ_CST);
    return c->error;
}

// The same of a call on a device. `notices` is whether drivers report there that a device was lost.
static VkResult device_fault(struct owner *device, enum kind kind, int notices) {
    VkResult error = fault(kind);
    if (!error && notices && device->lost) error = LOST;
    if (error && (notices || error == LOST)) finish(device);
    if (error == LOST) device->lost = 1;
    return error;
}

#define WRAP(kind, notices, name, parameters, ...)                               \
    static VkResult wrapped_##name parameters {                                  \
        struct owner *device = find(key_of((Handle)at));                         \
        VkResult error = device_fault(device, kind, notices);                    \
        if (error) return error;                                                 \
        VkResult(*call) parameters = (VkResult(*) parameters)device->calls[CALL_##name];\
        error = call(__VA_ARGS__);                                               \
        return notices && device->lost ? LOST : error;                           \
    }

DEVICE_CALLS(WRAP)

// How layers find the next one: `link` is a list, of which each layer takes the first.
struct link { struct link *next; GetInstanceProc instance_proc; Function second; };
struct create_info { uint32_t type; struct create_info *next; uint32_t function; struct link *link; };
enum { LOADER_INSTANCE = 47, LOADER_DEVICE = 48 };

static struct create_info *link_of(const void *info, uint32_t type) {
    struct create_info *at = ((struct create_info *)info)->next;
    while (at && !(at->type == type && at->function == 0)) at = at->next;
    return at;
}

static VkResult create_instance(const void *info, const void *allocator, Handle *instance) {
    struct create_info *chain = link_of(info, LOADER_INSTANCE);
    if (!chain) return INITIALIZATION_FAILED;
    GetInstanceProc proc = chain->link->instance_proc;
    last_instance_proc = proc;
    VkResult error = fault(CREATE_INSTANCE);
    if (error) return error;
    chain->link = chain->link->next;
    error = ((VkResult(*)(const void *, const void *, Handle *))proc(0, "vkCreateInstance"))(info, allocator, instance);
    if (!error) add(*instance, proc, 0);
    return error;
}

static VkResult create_device(Handle physical, const void *info, const void *allocator, Handle *device) {
    struct create_info *chain = link_of(info, LOADER_DEVICE);
    if (!chain) return INITIALIZATION_FAILED;
    VkResult error = fault(CREATE_DEVICE);
    if (error) return error;
    GetDeviceProc device_proc = (GetDeviceProc)chain->link->second;
    chain->link = chain->link->next;
    struct owner *instance = find(key_of(physical));
    Function create = instance->calls[CALL_vkCreateDevice];
    error = ((VkResult(*)(Handle, const void *, const void *, Handle *))create)(physical, info, allocator, device);
    if (!error) add(*device, 0, device_proc);
    return error;
}

static void destroy_device(Handle device, const void *allocator) {
    struct owner *owner = device ? find(key_of(device)) : 0;
    if (!owner) return;
    void (*destroy)(Handle, const void *) = (void (*)(Handle, const void *))owner->calls[CALL_vkDestroyDevice];
    owner->key = 0;
    destroy(device, allocator);
}

static void destroy_instance(Handle instance, const void *allocator) {
    struct owner *owner = instance ? find(key_of(instance)) : 0;
    if (!owner) return;
    void (*destroy)(Handle, const void *) = (void (*)(Handle, const void *))owner->calls[CALL_vkDestroyInstance];
    owner->key = 0;
    destroy(instance, allocator);
}

static VkResult enumerate_devices(Handle at, uint32_t *count, Handle *devices) {
    VkResult error = fault(ENUMERATE);
    if (error) return error;
    Function call = find(key_of(at))->calls[CALL_vkEnumeratePhysicalDevices];
    return ((VkResult(*)(Handle, uint32_t *, Handle *))call)(at, count, devices);
}

static VkResult enumerate_extensions(Handle at, const char *layer, uint32_t *count, void *properties) {
    VkResult error = fault(ENUMERATE);
    if (error) return error;
    Function call = find(key_of(at))->calls[CALL_vkEnumerateDeviceExtensionProperties];
    return ((VkResult(*)(Handle, const char *, uint32_t *, void *))call)(at, layer, count, properties);
}

static Function device_proc(Handle device, const char *name);
static Function instance_proc(Handle instance, const char *name);

static Function wrapped(const char *name) {
#define FIND(kind, notices, function, ...) \
    if (!strcmp(name, #function)) return (Function)wrapped_##function;
    DEVICE_CALLS(FIND)
    if (!strcmp(name, "vkDestroyDevice")) return (Function)destroy_device;
    return 0;
}

static Function device_proc(Handle device, const char *name) {
    if (!strcmp(name, "vkGetDeviceProcAddr")) return (Function)device_proc;
    Function following = next(find(key_of(device)), name);
    Function own = wrapped(name);
    return following && own ? own : following;
}

static Function instance_proc(Handle instance, const char *name) {
    if (!strcmp(name, "vkGetInstanceProcAddr")) return (Function)instance_proc;
    if (!strcmp(name, "vkGetDeviceProcAddr")) return (Function)device_proc;
    if (!strcmp(name, "vkCreateInstance")) return (Function)create_instance;
    if (!strcmp(name, "vkDestroyInstance")) return (Function)destroy_instance;
    if (!strcmp(name, "vkCreateDevice")) return (Function)create_device;
    if (!strcmp(name, "vkEnumeratePhysicalDevices")) return (Function)enumerate_devices;
    if (!strcmp(name, "vkEnumerateDeviceExtensionProperties")) return (Function)enumerate_extensions;
    Function own = wrapped(name);
    if (own) return own;
    struct owner *owner = instance ? find(key_of(instance)) : 0;
    if (owner) return next(owner, name);
    return last_instance_proc ? last_instance_proc(instance, name) : 0;
}

struct negotiation { uint32_t type; void *next; uint32_t version; GetInstanceProc instance; GetDeviceProc device; Function physical; };

__attribute__((visibility("default"))) VkResult vkNegotiateLoaderLayerInterfaceVersion(struct negotiation *with) {
    if (with->version > 2) with->version = 2;
    with->instance = instance_proc;
    with->device = device_proc;
    with->physical = 0;
    return SUCCESS;
}
