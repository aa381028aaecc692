# bash completion for silt and siltd. Commands and options are read from --help, streams from siltd,
# so it knows what this silt knows.

_silt_options() { # PROGRAM [COMMAND]
    "$@" --help 2>/dev/null | grep -oE -- '(^|[ ,])--[a-z][a-z-]*' | tr -d ' ,' | sort -u
}

_silt() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local program=${COMP_WORDS[0]} command= endpoint=() names=0 i word

    COMPREPLY=()
    if [[ ${program##*/} == siltd ]]; then
        case $previous in
        --device) COMPREPLY=($(compgen -W 'cpu cuda' -- "$current")) ;;
        --device-weights) COMPREPLY=($(compgen -W 'bf16 file' -- "$current")) ;;
        --find) COMPREPLY=($(compgen -W 'both words keys' -- "$current")) ;;
        --when-full) COMPREPLY=($(compgen -W 'stop trim' -- "$current")) ;;
        --data) COMPREPLY=($(compgen -d -- "$current")) ;;
        --model | --adapter | --config) COMPREPLY=($(compgen -f -- "$current")) ;;
        *) COMPREPLY=($(compgen -W "$(_silt_options "$program")" -- "$current")) ;;
        esac
        return
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case $word in
        -c | --endpoint)
            endpoint=(-c "${COMP_WORDS[++i]}")
            ;;
        -*) ;;
        *)
            if [[ -z $command ]]; then command=$word; else names=$((names + 1)); fi
            ;;
        esac
    done
    if [[ -z $command ]]; then
        if [[ $current == -* ]]; then
            COMPREPLY=($(compgen -W '--endpoint --help --version' -- "$current"))
        else
            COMPREPLY=($(compgen -W "$("$program" --help 2>/dev/null |
                sed -n '/^Commands/,/^$/s/^  \([a-z]*\) .*/\1/p')" -- "$current"))
        fi
        return
    fi
    case $previous in
    --recall) COMPREPLY=($(compgen -W 'none segments text auto' -- "$current")) && return ;;
    --dmc) COMPREPLY=($(compgen -W '1 2 4 8 auto' -- "$current")) && return ;;
    --format) COMPREPLY=($(compgen -W 'plain transcript vtt srt' -- "$current")) && return ;;
    --turn) COMPREPLY=($(compgen -W 'system user assistant tool' -- "$current")) && return ;;
    --key-file | --client-key | --server-key) COMPREPLY=($(compgen -f -- "$current")) && return ;;
    --state) COMPREPLY=($(compgen -d -- "$current")) && return ;;
    esac
    if [[ $current == -* ]]; then
        COMPREPLY=($(compgen -W "$(_silt_options "$program" "$command")" -- "$current"))
    elif [[ $command == key && $names == 0 ]]; then
        COMPREPLY=($(compgen -W 'new server list allow deny' -- "$current"))
    elif [[ $command == key && $names == 1 ]]; then
        COMPREPLY=($(compgen -f -- "$current"))
    elif [[ $command == rm || ($names == 0 && $command != ls && $command != gateway) ]]; then
        COMPREPLY=($(compgen -W "$(timeout 1 "$program" "${endpoint[@]}" ls -q 2>/dev/null)" \
            -- "$current"))
    elif [[ $command == feed ]]; then
        COMPREPLY=($(compgen -f -- "$current"))
    fi
}
complete -o filenames -F _silt silt siltd
