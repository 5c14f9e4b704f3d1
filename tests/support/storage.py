"""A storage on loopback that speaks Google's JSON API: all that TensorFlow, tensorstore and gcsfs ask of gs://.

TensorFlow knows no setting for the address of the storage. It reaches this one as its proxy, under Google's names.
"""

import base64
import contextlib
import datetime
import hashlib
import http.server
import itertools
import json
import re
import ssl
import threading
import urllib.parse
from http import HTTPStatus

import trustme


class Refused(Exception):
    """A request that is answered by an error. `args[0]` is the status."""


class Storage:
    """Objects in buckets, and a server for them. To be used in a `with` block.

    Args:
        directory: Existing directory for the certificates of the server.
        buckets: Names of the buckets.

    Attributes:
        objects: Content of the objects by bucket and name: {'bucket': {'a/b.txt': b'...'}}.
        locked: Buckets that nobody may use.
        public: Buckets that need no credentials.
    """

    def __init__(self, directory, *buckets):
        self.objects = {bucket: {} for bucket in buckets}
        self.locked, self.public = set(), set()
        self.generations = {}
        self.uploads = {}
        self.lock = threading.RLock()
        self._count = itertools.count(1)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority = trustme.CA()
        authority.issue_cert('*.googleapis.com').configure_cert(self.context)
        self._certificate = directory / 'authority.pem'
        authority.cert_pem.write_to_path(self._certificate)

    def __enter__(self):
        self._server = http.server.ThreadingHTTPServer(
            ('127.0.0.1', 0), type('Handler', (_Handler,), {'storage': self})
        )
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()

    @property
    def address(self):
        return f'http://127.0.0.1:{self._server.server_port}'

    def as_proxy(self):
        """Environment of a process that finds this storage in the place of Google's."""
        return {
            'https_proxy': self.address, 'CURL_CA_BUNDLE': str(self._certificate),
            'REQUESTS_CA_BUNDLE': str(self._certificate), 'NO_GCE_CHECK': 'true',
            'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
        }  # fmt: skip

    def environment(self):
        """Environment of a process whose libraries all use this storage, with a token."""
        return self.as_proxy() | {
            'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'token', 'TENSORSTORE_GCS_HTTP_URL': self.address,
            'STORAGE_EMULATOR_HOST': self.address,
        }  # fmt: skip

    def put(self, bucket, name, content):
        """Stores an object, and gives its description."""
        with self.lock:
            self.objects[bucket][name] = bytes(content)
            self.generations[bucket, name] = 10**9 + next(self._count)
            return self.describe(bucket, name)

    def describe(self, bucket, name):
        """Resource of an object, as the API gives it."""
        content, generation = self.objects[bucket][name], str(self.generations[bucket, name])
        time = datetime.datetime.fromtimestamp(int(generation) / 1e3, datetime.UTC).strftime('%Y-%m-%dT%H:%M:%S.%fZ')
        return {
            'kind': 'storage#object', 'name': name, 'bucket': bucket, 'generation': generation, 'metageneration': '1',
            'size': str(len(content)), 'contentType': 'application/octet-stream', 'timeCreated': time, 'updated': time,
            'md5Hash': base64.b64encode(hashlib.md5(content).digest()).decode(), 'etag': generation,
        }  # fmt: skip

    def listing(self, bucket, prefix='', delimiter='', maxResults='1000', pageToken='', startOffset='', endOffset=''):
        """One page of the objects, and of the directories if there is a delimiter."""
        found = {}
        for name in sorted(self.objects[bucket]):
            if not name.startswith(prefix) or name < startOffset or (endOffset and name >= endOffset):
                continue
            folder, mark, _ = name[len(prefix) :].partition(delimiter) if delimiter else ('', '', '')
            found[prefix + folder + mark if mark else name] = bool(mark)
        names = [name for name in found if name > pageToken]
        page = names[: int(maxResults)]
        answer = {'kind': 'storage#objects', 'prefixes': [name for name in page if found[name]]}
        answer['items'] = [self.describe(bucket, name) for name in page if not found[name]]
        return answer | ({'nextPageToken': page[-1]} if len(names) > len(page) else {})


class _Handler(http.server.BaseHTTPRequestHandler):
    """The requests of one connection. `storage` is the storage that they are for."""

    protocol_version = 'HTTP/1.1'
    storage: Storage

    def log_message(self, format, *args):
        pass

    def do_CONNECT(self):
        self.wfile.write(b'HTTP/1.1 200 Connection established\r\n\r\n')
        self.connection = self.storage.context.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile('rb'), self.connection.makefile('wb', buffering=0)
        self.close_connection = False

    def finish(self):
        super().finish()
        self.connection.close()

    def handle(self):
        # A process that was killed leaves its connections.
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            super().handle()

    def do_any(self):
        address = urllib.parse.urlsplit(self.path)
        self.query = {key: value[0] for key, value in urllib.parse.parse_qs(address.query).items()}
        self.body = self.read_body()
        with self.storage.lock:
            try:
                self.route(address.path)
            except Refused as error:
                self.answer({'error': {'code': error.args[0], 'message': 'refused'}}, status=error.args[0])

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_any

    def read_body(self):
        if self.headers.get('Transfer-Encoding') != 'chunked':
            return self.rfile.read(int(self.headers.get('Content-Length', 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b''.join(parts)

    def route(self, path):
        """Answers a request for a path like /storage/v1/b/BUCKET/o/NAME."""
        if path.startswith('/batch'):
            return self.batch()
        api = re.fullmatch(r'(?:/upload|/download)?/storage/v1/b/([^/]+)(?:/storageLayout|(/o)(?:/(.+))?)?', path)
        plain = re.fullmatch(r'/([^/]+)/(.+)', path)
        if not api:
            if not plain:
                raise Refused(404)
            bucket, name = map(urllib.parse.unquote, plain.groups())
            self.check(bucket)
            return self.download(bucket, name)
        bucket, objects, name = api.groups()
        self.check(bucket)
        if not objects:
            return self.answer({'kind': 'storage#bucket', 'name': bucket, 'location': 'EU', 'locationType': 'region'})
        if path.startswith('/upload'):
            return self.upload(bucket)
        if not name:
            known = ('prefix', 'delimiter', 'maxResults', 'pageToken', 'startOffset', 'endOffset')
            return self.answer(self.storage.listing(bucket, **{k: v for k, v in self.query.items() if k in known}))
        source, action, target = re.fullmatch('(.+?)(?:/(rewriteTo/b|moveTo)/(.+))?', name).groups()
        name = urllib.parse.unquote(source)
        if action:
            to_bucket, _, to_name = (target if action == 'rewriteTo/b' else f'{bucket}/{target}').partition('/o/')
            made = self.copy(bucket, name, urllib.parse.unquote(to_bucket), urllib.parse.unquote(to_name))
            if action == 'moveTo':
                del self.storage.objects[bucket][name]
                return self.answer(made)
            return self.answer({'kind': 'storage#rewriteResponse', 'done': True, 'resource': made})
        if self.command == 'DELETE':
            self.precondition(bucket, name)
            self.storage.objects[bucket].pop(name, None)
            return self.answer(b'', status=204)
        return self.download(bucket, name) if self.query.get('alt') == 'media' else self.describe(bucket, name)

    def check(self, bucket):
        # A client that was told the address of this storage sends no token. Google's own address wants one.
        is_known = self.headers.get('Authorization') or 'googleapis' not in self.headers.get('Host', '')
        if not is_known and bucket not in self.storage.public:
            raise Refused(401)
        if bucket in self.storage.locked:
            raise Refused(403)
        if bucket not in self.storage.objects:
            raise Refused(404)

    def precondition(self, bucket, name, *, must_exist=True):
        found = self.storage.generations[bucket, name] if name in self.storage.objects[bucket] else 0
        if must_exist and not found:
            raise Refused(404)
        if int(self.query.get('ifGenerationMatch', found)) != found:
            raise Refused(412)
        if int(self.query.get('ifGenerationNotMatch', -1)) == found:
            raise Refused(304)

    def describe(self, bucket, name):
        self.precondition(bucket, name)
        self.answer(self.storage.describe(bucket, name))

    def download(self, bucket, name):
        self.precondition(bucket, name)
        content, headers = self.storage.objects[bucket][name], {}
        headers['x-goog-generation'] = str(self.storage.generations[bucket, name])
        wanted = re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', ''))
        if not wanted:
            return self.answer(content, headers=headers)
        first, last = wanted.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        end = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= len(content):
            return self.answer(b'', status=416)
        headers['Content-Range'] = f'bytes {start}-{end - 1}/{len(content)}'
        self.answer(content[start:end], status=206, headers=headers)

    def copy(self, bucket, name, to_bucket, to_name):
        self.precondition(bucket, name)
        return self.storage.put(to_bucket, to_name, self.storage.objects[bucket][name])

    def upload(self, bucket):
        kind = self.query.get('uploadType')
        if 'upload_id' in self.query:
            return self.upload_part(bucket)
        if kind == 'multipart':
            boundary = re.search('boundary="?([^";]+)', self.headers['Content-Type']).group(1).encode()
            _, description, part, _ = (b'\r\n' + self.body).split(b'\r\n--' + boundary)
            name = json.loads(description.split(b'\r\n\r\n', 1)[1])['name']
            self.precondition(bucket, name, must_exist=False)
            return self.answer(self.storage.put(bucket, name, part.split(b'\r\n\r\n', 1)[1]))
        name = self.query.get('name') or json.loads(self.body)['name']
        self.precondition(bucket, name, must_exist=False)
        if kind == 'media':
            return self.answer(self.storage.put(bucket, name, self.body))
        number = str(len(self.storage.uploads))
        self.storage.uploads[number] = name, bytearray()
        scheme = 'https' if isinstance(self.connection, ssl.SSLSocket) else 'http'
        place = f'{scheme}://{self.headers["Host"]}{self.path}&upload_id={number}'
        self.answer({}, headers={'Location': place})

    def upload_part(self, bucket):
        name, content = self.storage.uploads[self.query['upload_id']]
        content += self.body
        total = self.headers.get('Content-Range', f'/{len(content)}').rpartition('/')[2]
        if total in ('*', '') or int(total) > len(content):
            return self.answer(b'', status=308, headers={'Range': f'bytes=0-{len(content) - 1}'} if content else {})
        self.answer(self.storage.put(bucket, name, content))

    def batch(self):
        names = re.findall(rb'DELETE [^ ]*/b/([^/]+)/o/([^ ]+) ', self.body)
        for bucket, name in names:
            self.storage.objects[bucket.decode()].pop(urllib.parse.unquote(name.decode()), None)
        part = '--batch\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n\r\n'
        text = part * len(names) + '--batch--'
        self.answer(text.encode(), headers={'Content-Type': 'multipart/mixed; boundary=batch'})

    def answer(self, content, *, status=200, headers=None):
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {'Content-Type': 'application/json', **(headers or {})}
        self.send_response(status, HTTPStatus(status).phrase)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if status not in (204, 304):
            self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        if self.command != 'HEAD' and status not in (204, 304):
            self.wfile.write(content)
