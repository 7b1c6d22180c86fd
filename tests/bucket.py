"""A bucket on this machine: as much of Google Cloud Storage's JSON API as gcsfs and TensorStore use, in memory.

An upload is there when its last byte has come, under a new generation, or not at all; conditions on generations hold.
https://cloud.google.com/storage/docs/json_api. Reached through `Bucket.environment`.
"""

import base64
import email
import email.policy
import hashlib
import json
import re
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import google_crc32c


class Bucket(ThreadingHTTPServer):
    """Serves the bucket `name` until closed. `objects`: name -> (bytes, generation).

    Every `fail_every`-th request is answered with 503, as Google does now and then.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, name="bucket", fail_every=0):
        super().__init__(("localhost", 0), Handler)
        self.name, self.fail_every = name, fail_every
        self.objects, self.uploads = {}, {}
        self.lock, self.requests, self.generation = threading.RLock(), 0, 1000
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def environment(self):
        url = f"http://localhost:{self.server_port}"
        return {
            "STORAGE_EMULATOR_HOST": url,  # gcsfs
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # TensorStore
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, address):
        """A client that has seen enough of an object hangs up; all else is a defect of this file."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, address)

    def put(self, name, data):
        with self.lock:
            self.generation += 1
            self.objects[name] = (bytes(data), self.generation)
            return self.about(name)

    def about(self, name):
        data, generation = self.objects[name]
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(generation))
        return {
            "kind": "storage#object", "name": name, "bucket": self.name, "id": f"{self.name}/{name}/{generation}",
            "size": str(len(data)), "generation": str(generation), "metageneration": "1", "updated": now,
            "timeCreated": now, "contentType": "application/octet-stream", "storageClass": "STANDARD",
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
            "crc32c": base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode(),
        }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a short answer waits 40 ms for the acknowledgement of its headers

    def log_message(self, *_):
        pass

    def handle_one(self):
        bucket, url = self.server, urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        with bucket.lock:
            bucket.requests += 1
            if bucket.fail_every and bucket.requests % bucket.fail_every == 0:
                return self.answer(503, b"try again")
            if url.path.startswith("/batch/"):
                return self.batch(body)
            status, content, headers = self.result(self.command, url.path, query, body)
        self.answer(status, content, headers)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = handle_one

    def answer(self, status, content=b"", headers=None):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def batch(self, body):
        """Several requests in one, as multipart/mixed: gcsfs deletes so."""
        message = email.message_from_bytes(
            b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n" + body, policy=email.policy.HTTP
        )
        parts = []
        for part in message.get_payload():
            method, target, *_ = part.get_payload(decode=True).split(b"\r\n")[0].decode().split(" ")
            split = urllib.parse.urlsplit(target)
            query = dict(urllib.parse.parse_qsl(split.query))
            status, content, _ = self.result(method, urllib.parse.unquote(split.path), query, b"")
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            parts.append(
                b"--X\r\nContent-Type: application/http\r\nContent-ID: <response-%s>\r\n\r\nHTTP/1.1 %d x\r\n\r\n%s\r\n"
                % ((part["Content-ID"] or "<>").strip("<>").encode(), status, content)
            )
        self.answer(200, b"".join(parts) + b"--X--\r\n", {"Content-Type": "multipart/mixed; boundary=X"})

    def result(self, method, path, query, body):
        """(status, content, headers) of one request."""
        bucket = self.server
        if found := re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path):
            return self.upload(found[1], query, body)
        found = re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)(/o)?(?:/(.+))?", path)
        if not found or found[1] != bucket.name:
            return 404, {"error": {"code": 404, "message": f"no such bucket: {path}"}}, {}
        if not found[2]:
            return 200, {"name": bucket.name, "kind": "storage#bucket"}, {}
        if not found[3]:
            return self.listing(query)
        name = urllib.parse.unquote(found[3])
        if method == "POST":  # copyTo, rewriteTo, moveTo
            source, verb, _, target = re.fullmatch(r"(.+)/(copyTo|rewriteTo|moveTo)/b/([^/]+)/o/(.+)", name).groups()
            if source not in bucket.objects:
                return 404, {}, {}
            resource = bucket.put(target, bucket.objects[source][0])
            return 200, {"done": True, "resource": resource} if verb == "rewriteTo" else resource, {}
        generation = bucket.objects[name][1] if name in bucket.objects else 0
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            return 412, {}, {}
        if not generation:
            return 404, {"error": {"code": 404, "message": "no such object"}}, {}
        if query.get("ifGenerationNotMatch") == str(generation):
            return 304, b"", {}
        if method == "DELETE":
            del bucket.objects[name]
            return 204, b"", {}
        if query.get("alt") != "media":
            return 200, bucket.about(name), {}
        data = bucket.objects[name][0]
        headers = {"x-goog-generation": str(generation), "x-goog-stored-content-length": str(len(data))}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not asked:
            return 200, data, headers
        first = int(asked[1]) if asked[1] else len(data) - int(asked[2])
        last = min(int(asked[2]), len(data) - 1) if asked[1] and asked[2] else len(data) - 1
        if first >= len(data):
            return 416, b"", headers
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return 206, data[first : last + 1], headers

    def listing(self, query):
        bucket, prefix, delimiter = self.server, query.get("prefix", ""), query.get("delimiter", "")
        items, folders = [], set()
        for name in sorted(bucket.objects):
            if not name.startswith(prefix) or name < query.get("startOffset", ""):
                continue
            if query.get("endOffset") and name >= query["endOffset"]:
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(bucket.about(name))
        first = int(query.get("pageToken") or 0)
        most = int(query.get("maxResults") or 1000)
        page = {"kind": "storage#objects", "items": items[first : first + most]}
        if first == 0:
            page["prefixes"] = sorted(folders)
        if first + most < len(items):
            page["nextPageToken"] = str(first + most)
        return 200, page, {}

    def upload(self, name, query, body):
        bucket = self.server
        if name != bucket.name:
            return 404, {"error": {"code": 404, "message": "no such bucket"}}, {}
        if "upload_id" in query:  # a part of a resumable upload
            upload = bucket.uploads[query["upload_id"]]
            upload["data"] += body
            total = self.headers["Content-Range"].rpartition("/")[2]
            if total == "*" or len(upload["data"]) < int(total):
                return 308, b"", {"Range": f"bytes=0-{len(upload['data']) - 1}"} if upload["data"] else {}
            return 200, bucket.put(upload["name"], upload["data"]), {}
        if query["uploadType"] == "media":
            name, data = query["name"], body
        elif query["uploadType"] == "multipart":
            boundary = re.search(r"boundary=['\"]?([^'\";]+)", self.headers["Content-Type"])[1].encode()
            about, data = (part.partition(b"\n\n" if b"\r\n\r\n" not in part else b"\r\n\r\n")[2]
                           for part in body.split(b"--" + boundary)[1:3])  # fmt: skip
            name, data = json.loads(about)["name"], re.sub(rb"\r?\n\Z", b"", data)
        else:  # resumable: where to send the parts
            identity = str(len(bucket.uploads))
            name = json.loads(body or b"{}").get("name") or query["name"]
            bucket.uploads[identity] = {"name": name, "data": b""}
            url = f"http://localhost:{bucket.server_port}/upload/storage/v1/b/{bucket.name}/o"
            return 200, b"{}", {"Location": f"{url}?uploadType=resumable&upload_id={identity}"}
        generation = bucket.objects[name][1] if name in bucket.objects else 0
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            return 412, {}, {}
        return 200, bucket.put(name, data), {}
