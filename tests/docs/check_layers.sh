#!/usr/bin/env bash
# Fails when a file of src/ includes a header of a layer above its own or beside it.
set -euo pipefail
cd "$1/src"

declare -A below=(
  [core]="core"
  [forest]="core forest"
  [plan]="core forest plan"
  [reference]="core reference"
  [cpu]="core forest plan cpu"
  [cuda]="core forest plan cuda"
)
includes=0
broken=0
while IFS=: read -r file included; do
  layer=${file%%/*}
  target=${included%%/*}
  [[ -n ${below[$layer]:-} && -n ${below[$target]:-} ]] || continue
  includes=$((includes + 1))
  if [[ " ${below[$layer]} " != *" $target "* ]]; then
    echo "src/$file includes $included: $layer may include ${below[$layer]}"
    broken=1
  fi
done < <(grep -roE '^#include "[a-z_]+/[^"]+"' --include='*.h' --include='*.cuh' --include='*.cc' --include='*.cu' . |
         sed -E 's/^\.\///; s/#include "//; s/"$//')
echo "$includes includes between layers"
[[ $includes -gt 0 && $broken -eq 0 ]]
