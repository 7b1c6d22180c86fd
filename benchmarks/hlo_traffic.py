"""What a compiled TPU program reads from and writes to device memory, and what its collectives send.

python benchmarks/hlo_traffic.py PROGRAM.txt       the text of jax's `compiled.as_text()`, anybody's: a line of JSON
"""

import json
import sys

from jaxvision.runtime import hlo

if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        program = file.read()
    counts = {"device_memory_bytes": hlo.device_memory_bytes(program), "collectives": hlo.collectives(program)}
    print(json.dumps({"program": sys.argv[1], **counts}))
