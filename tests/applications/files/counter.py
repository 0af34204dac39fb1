"""Counts requests by client in memory that all workers share."""
import mmap
import multiprocessing
import struct

memory = mmap.mmap(-1, 4096)
lock = multiprocessing.Lock()


def app(environ, start_response):
    place = int(environ["QUERY_STRING"]) * 8
    with lock:
        n = struct.unpack_from("Q", memory, place)[0] + 1
        struct.pack_into("Q", memory, place, n)
    body = b"%d" % n
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
