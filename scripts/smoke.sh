#!/bin/sh
# The smoke profile end to end in a scratch copy, so that the outputs of the chosen profile stay
# as they are. Checks what `dvc repro` alone cannot: that a second run has nothing to do, that the
# metrics are there, and that the exported model reads a picture.
set -eu
root=$(pwd)
copy=$root/.work/smoke
export METRICGOLD_PYTHON="$root/.venv/bin/python"
dvc="$root/.venv/bin/dvc"

rm -rf "$copy"
mkdir -p "$copy/.dvc"
cp -R dvc.yaml params.yaml .dvcignore scripts flows metricgold export "$copy"
if [ -d docs ]; then cp -R docs "$copy"; fi
cp .dvc/config "$copy/.dvc/config"
printf '[core]\n    no_scm = true\n' >"$copy/.dvc/config.local"
cd "$copy"
sed 's/^profile:.*/profile: smoke/' "$root/params.yaml" >params.yaml

"$dvc" repro
status=$("$dvc" status)
case $status in
*"up to date"*) ;;
*)
    printf 'error: stages are stale right after a run:\n%s\n' "$status" >&2
    exit 1
    ;;
esac
"$METRICGOLD_PYTHON" -m flows.summary
