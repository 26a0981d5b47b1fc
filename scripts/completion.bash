# Completes what this project's commands take, in bash (zsh: autoload -U bashcompinit; bashcompinit):
#
#     source scripts/completion.bash
#
# python train.py pe=<TAB>   python evaluate.py run=<TAB>   python scripts/compare.py runs=outputs/<TAB>
_cope_complete() {
  local folder candidates word
  folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
  case "$COMP_LINE" in
    *train.py\ *|*evaluate.py\ *|*generate.py\ *|*scripts/*.py\ *|*benchmarks/*.py\ *) ;;
    *) COMPREPLY=(); return ;;
  esac
  candidates=$("${COMP_WORDS[0]}" -S "$folder/complete.py" "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
  # What bash takes for the word begins after the last = or :, which part words for it.
  word="${COMP_LINE:0:COMP_POINT}"; word="${word##* }"
  case "$COMP_WORDBREAKS" in *=*) [ "${word%=*}" = "$word" ] || candidates=$(printf '%s\n' "$candidates" | sed 's/^[^=]*=//') ;; esac
  local IFS=$'\n'
  COMPREPLY=($candidates)
}
complete -o nospace -o default -F _cope_complete python python3 .venv/bin/python
