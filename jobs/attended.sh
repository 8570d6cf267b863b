# shellcheck shell=bash
# Sourced by the job scripts. A signal to a script alone would end bash, but nothing that it has started. Defines
#     attended COMMAND...     runs it, passes the signals of the script on to it, and returns its status
#     check_numbers NAME...   refuses variables that are set to no whole number from 1 to a billion
# and the variable `passed`: the last signal that the latest COMMAND got so.
attendants=$(cd "${BASH_SOURCE[0]%/*}" && pwd)

step=
passed=
woken=
pass() {
    passed=$1 woken=yes
    [ -z "$step" ] || kill "-$1" "$step" 2>/dev/null || true
}

# A trap ends `wait` early with its own status: wait again.
wait_for_step() {
    local status=0
    wait "$step" || status=$?
    while [ -n "$woken" ]; do
        woken='' status=0
        wait "$step" || status=$?
    done
    step=
    return "$status"
}

attended() {
    local status=0 interrupts=yes
    [[ $(trap -p INT) != *"''"* ]] || interrupts=no  # the script is to ignore Ctrl-C, and so will it
    passed='' woken=''
    # Hydra ends the ranks on SIGHUP, and passes SIGTERM on.
    trap 'pass TERM' HUP TERM
    trap 'pass INT' INT
    trap 'pass USR1' USR1
    python3 -I "$attendants/apart.py" "$interrupts" "$@" </dev/null &
    step=$!
    [ -z "$passed" ] || pass "$passed"
    wait_for_step || status=$?
    trap - HUP TERM INT USR1
    return "$status"
}

check_numbers() {
    local name
    for name in "$@"; do
        case ${!name:-1} in
            0* | *[!0-9]* | ??????????*)
                printf '%s: %s must be a whole number of at least 1: %q\n' "${0##*/}" "$name" "${!name}" >&2
                exit 2
                ;;
        esac
    done
}
