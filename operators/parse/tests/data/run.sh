#!/bin/sh
set -e

if true; then
    echo hi
fi
