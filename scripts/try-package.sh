#!/bin/sh
# scripts/try-package.sh: builds the wheel and the sdist, and tries each where nothing but Python is: an environment of its
# own, in a folder outside the checkout. PYTHON names another interpreter than .venv's.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# from a copy of what belongs to it: what is built must not depend on what else lies in the checkout
mkdir "$work/src"
tar -C "$root" --exclude=__pycache__ -cf - aif prompts pipelines data tests trials docs examples scripts \
    README.md CHANGELOG.md LICENSE Makefile pyproject.toml | tar -C "$work/src" -xf -
(cd "$work/src" && "$python" -m hatchling build -t wheel -t sdist -d "$work/dist" >/dev/null)
ls -l "$work/dist"

"$python" -m venv "$work/bare"
bare=$work/bare/bin
for built in "$work"/dist/*.whl "$work"/dist/*.tar.gz; do
    echo "trying $(basename "$built")"
    case $built in
        *.whl) "$bare/pip" install --quiet --disable-pip-version-check "$built" ;;
        *) "$bare/pip" install --quiet --disable-pip-version-check --force-reinstall --no-deps "$built" ;;
    esac
    place=$work/$(basename "$built").tried
    mkdir "$place"
    (
        cd "$place"
        "$bare/aif" --help >/dev/null
        "$bare/aif" init demo >/dev/null
        "$bare/aif" run demo/pipeline.yaml >run.txt 2>&1 || { cat run.txt; exit 1; }
        "$bare/aif" export demo/pipeline.yaml >export.txt 2>&1 || { cat export.txt; exit 1; }
        "$bare/python" -c 'import datasets; print(datasets.load_dataset("demo/runs/demo/dataset", "trl"))'
        "$bare/aif" rubric list >/dev/null
    )
done
echo "wheel and sdist work by themselves"
