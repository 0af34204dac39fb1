# Processes with what cannot be moved, one each, named after what they have. Run as
#   python3 oddities.py inside | outside | only ODDITY
# in containers of a pod that share /shared: `outside` holds the other ends. For containers only: it
# removes a file of the image and mounts a file system.
import array, ctypes, fcntl, mmap, os, pty, signal, socket, struct, sys, termios, threading, time

libc = ctypes.CDLL(None, use_errno=True)
keep = []


def check(result, what):
    if result < 0:
        raise OSError(ctypes.get_errno(), what)
    return result


def syscall(number, *arguments):
    return check(libc.syscall(number, *arguments), "syscall %d" % number)


def io_uring():
    keep.append(syscall(425, 8, ctypes.create_string_buffer(120)))


def mptcp():
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    listener.bind(("", 8262))
    listener.listen()
    keep.append(listener)


def vsock():
    keep.append(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))


def userfaultfd():
    keep.append(syscall(323, 1))


def mqueue():
    attributes = struct.pack("8q", 0, 1, 8, 0, 0, 0, 0, 0)
    check(libc.mq_open(b"/odd", os.O_CREAT | os.O_RDWR, 0o600, attributes), "mq_open")


def watch(path):  # Kept open for as long as the process lives.
    descriptor = check(libc.inotify_init1(0), "inotify_init1")
    check(libc.inotify_add_watch(descriptor, path, 2), "inotify_add_watch")


def rootfs_watch():
    watch(b"/usr/bin")


def log_watch():
    os.makedirs("/var/log", exist_ok=True)
    watch(b"/var/log")


def projected_watch():
    watch(b"/etc/projected/key")


def projected_file():
    keep.append(open("/etc/projected/key"))


def fanotify():
    keep.append(syscall(300, 0x200, 0))


def unlinked(size):
    path = "/tmp/unlinked-%d" % os.getpid()
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    os.posix_fallocate(descriptor, 0, size)
    os.unlink(path)


def unlinked_big():
    unlinked(257 << 20)


def removed_name():
    keep.append(open("/etc/group"))
    os.unlink("/etc/group")


def secret_memory():
    descriptor = syscall(447, 0)
    os.ftruncate(descriptor, 4096)
    keep.append(descriptor)


def huge_pages():
    MAP_HUGETLB, MAP_NORESERVE = 0x40000, 0x4000
    keep.append(mmap.mmap(-1, 2 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE))


def seccomp_notify():
    check(libc.prctl(38, 1, 0, 0, 0), "no_new_privs")
    allow = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 1, ctypes.addressof(allow)))
    keep.append((allow, program, syscall(317, 1, 8, program)))


def perf_event():
    attributes = ctypes.create_string_buffer(struct.pack("IIQQQQQ", 1, 128, 0, 0, 0, 0, 1 << 5 | 1 << 6), 128)
    keep.append(syscall(298, attributes, 0, -1, -1, 0))


def bpf():
    # BPF_MAP_CREATE: an array with one entry of 4 bytes.
    keep.append(syscall(321, 0, ctypes.create_string_buffer(struct.pack("IIII", 2, 4, 4, 1), 128), 128))


def device():
    for path in ["/dev/net/tun", "/dev/fuse", "/dev/loop-control", "/dev/kvm"]:
        try:
            keep.append(os.open(path, os.O_RDWR))
            return
        except OSError:
            continue
    raise OSError("no device can be opened")


def odd_mount():
    os.makedirs("/mnt/odd", exist_ok=True)
    check(libc.mount(b"none", b"/mnt/odd", b"ramfs", 0, None), "mount")


def namespaces():
    os.unshare(os.CLONE_NEWUTS | os.CLONE_NEWIPC)


# The first two are made for children alone.
def nested_namespaces():
    os.unshare(os.CLONE_NEWPID | os.CLONE_NEWTIME)
    if os.fork() == 0:
        os.unshare(os.CLONE_NEWNET | os.CLONE_NEWCGROUP)


def stopped():
    os.kill(os.getpid(), signal.SIGSTOP)


def traced():
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        check(libc.prctl(15, b"traced", 0, 0, 0), "name")
        os.write(done, b"x")
        while True:
            time.sleep(1000)
    os.read(ready, 1)
    check(libc.prctl(15, b"tracer", 0, 0, 0), "name")
    check(libc.ptrace(0x4206, child, None, None), "seize")


def dead_main_thread():
    threading.Thread(target=lambda: time.sleep(1 << 20), daemon=True).start()
    started.set()
    libc.pthread_exit(None)


def inherited_terminal():
    os.setsid()
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    controlling = os.open("/dev/tty", os.O_RDWR)
    if os.fork() == 0:
        check(libc.prctl(15, b"inherited-tty", 0, 0, 0), "name")
        os.close(master)
        os.close(slave)
    keep.append(controlling)


def from_outside():
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    while True:
        try:
            connection.connect("/shared/socket")
            break
        except OSError:
            time.sleep(0.05)
    descriptors = array.array("i")
    _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_LEN(64))
    for _, _, data in ancillary:
        descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    keep.append((connection, descriptors))


def outside():
    master, slave = pty.openpty()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("/shared/socket")
    listener.listen()
    file = open("/etc/passwd")
    pidfd = os.pidfd_open(os.getpid())
    connection, _ = listener.accept()
    with_descriptors = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [slave, file.fileno(), pidfd]))]
    connection.sendmsg([b"x"], with_descriptors)
    keep.append((master, slave, listener, connection, file, pidfd))


# As the older iptables does when it is asked for anything: the network namespace then has the table.
def legacy_table():
    asking = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    IPT_SO_GET_INFO, name = 64, ctypes.create_string_buffer(b"filter", 84)
    check(libc.getsockopt(asking.fileno(), 0, IPT_SO_GET_INFO, name, ctypes.byref(ctypes.c_uint(84))), "iptables")


# What is fine, and must not be refused.
def ordinary():
    unlinked(1 << 20)
    master, slave = pty.openpty()
    pair = socket.socketpair()
    os.makedirs("/shared/watched", exist_ok=True)
    watch(b"/shared/watched")
    watch(b"/etc/projected")
    memory = os.memfd_create("fine")
    os.write(memory, b"x" * 4096)
    keep.append((master, slave, pair, memory, os.pidfd_open(os.getpid()), open("/proc/self/stat"),
                 open("/proc/self/ns/net"), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)))
    fcntl.flock(open("/tmp/locked", "w"), fcntl.LOCK_EX)


INSIDE = [io_uring, mptcp, vsock, userfaultfd, mqueue, rootfs_watch, projected_watch, projected_file,
          fanotify, unlinked_big, removed_name, secret_memory, huge_pages, seccomp_notify, perf_event, bpf,
          device, odd_mount, namespaces, stopped, traced, dead_main_thread, inherited_terminal,
          from_outside, legacy_table, ordinary]
started = threading.Event()


def child(oddity):
    check(libc.prctl(15, oddity.__name__.replace("_", "-").encode()[:15], 0, 0, 0), "name")
    try:
        oddity()
    except Exception as error:
        print("cannot show", oddity.__name__, error, flush=True)
        os._exit(1)
    while True:
        signal.pause()


if sys.argv[1] == "outside":
    outside()
    print("ready", flush=True)
elif sys.argv[1] == "only":
    if os.fork() == 0:
        child(globals()[sys.argv[2]])
    print("ready", flush=True)
else:
    for oddity in INSIDE:
        if os.fork() == 0:
            child(oddity)
    print("ready", flush=True)
while True:
    time.sleep(1000)
