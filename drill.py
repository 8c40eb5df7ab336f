#!/usr/bin/env python3
"""Practise incidents of metrics_service on the real product, in a sandbox.

Exit codes: 0 pass, 1 fail or data lost, 2 wrong usage, 77 all skipped.
"""

import argparse
import json
import sys

from drills import catalogue, chain, sandbox


def main(argv=None):
    parser = argparse.ArgumentParser(prog="drill.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb")
    run = verbs.add_parser("run")
    run.add_argument("ids", nargs="*")
    run.add_argument("--evidence")
    run.add_argument("--keep", action="store_true")
    args = parser.parse_args(argv)
    code = 0
    with sandbox.private_folder("template") as folder:
        template = sandbox.make_template(folder)
        for name in args.ids:
            result = chain.perform(catalogue.BY_ID[name], template, args.evidence, args.keep)
            print(json.dumps(result, indent=1))
            code = max(code, result["verdict"] != "pass")
    return code


if __name__ == "__main__":
    sys.exit(main())
