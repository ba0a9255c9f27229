#!/usr/bin/env bash
# build.sh OUT.qcow2 [BOOT_DIRECTORY] - make the small guest that demos and tests boot.
#
# A Debian kernel and an initramfs of busybox (and dropbear, and a guest agent in shell: see rootfs/) on a
# FAT partition, and an ext4 partition that grows with the disk.  It comes up in 96 MiB of memory, says what
# it does in lines "kn: UPTIME ..." on the serial console, and is open by design: never let strangers reach it.
# BOOT_DIRECTORY also gets vmlinuz, initrd.img and cmdline, for booting without a boot loader.
#
# The files come from Debian packages, which are fetched and unpacked; nothing is installed or mounted, and
# no root is needed.  The same packages give the same image, bit for bit.  What was built once is kept under
# a name with the hash of everything here, so that a second call only copies.
#
#   KILONOVA_CACHE     where packages and images are kept (default: kilonova in the user's cache directory)
#   WITH_EFI=0         1: also boots under UEFI
#   DISK_MB=48         virtual size;  BOOT_MB=30 of it are the FAT partition
#   KERNEL_PARAMETERS  added to boot/cmdline
set -euo pipefail
(($# == 1 || $# == 2)) || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 2; }
HERE=$(dirname "$(readlink -f "$0")")
CACHE=${KILONOVA_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/kilonova}/guest-image
WITH_EFI=${WITH_EFI:-0} DISK_MB=${DISK_MB:-48} BOOT_MB=${BOOT_MB:-30}
export SOURCE_DATE_EPOCH=1700000000 E2FSPROGS_FAKE_TIME=1700000000 LC_ALL=C TZ=UTC MTOOLS_SKIP_CHECK=1
PATH=$PATH:/usr/sbin:/sbin

say() { echo "guest image: $*" >&2; }
words_of() { sed 's/#.*//' "$HERE/$1"; }

needs() {
    local program missing=()
    for program in apt-get dpkg-deb depmod modprobe cpio lz4 mformat mcopy syslinux mke2fs qemu-img; do
        command -v "$program" >/dev/null || missing+=("$program")
    done
    [[ -e /usr/lib/syslinux/mbr/mbr.bin ]] || missing+=(syslinux-common)
    ((${#missing[@]} == 0)) || {
        say "missing: ${missing[*]}; run tools/install-packages.sh tools/apt/run.txt"
        exit 1
    }
}

fetch() { # fetch PACKAGE DIRECTORY: unpack it there, from the cache if it is there
    local package=$1 into=$2 file
    file=$(find "$CACHE/packages" -name "${package}_*.deb" -printf '%f\n' | sort -V | tail -1)
    if [[ -z $file ]]; then
        say "fetching $package"
        (cd "$FRESH" && apt-get -qq -o APT::Sandbox::User=root download "$package" >/dev/null)
        file=$(cd "$FRESH" && echo "${package}"_*.deb)
        mv "$FRESH/$file" "$CACHE/packages/"
    fi
    mkdir -p "$into"
    dpkg-deb -x "$CACHE/packages/$file" "$into"
}

kernel_package() { # the newest one that is already here, or the one of the distribution
    local known
    known=$(find "$CACHE/packages" -name 'linux-image-*_*.deb' -printf '%f\n' | sort -V | tail -1)
    if [[ -n $known ]]; then
        echo "${known%%_*}"
        return
    fi
    apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1 || {
        say "reading the package lists"
        apt-get -qq update >&2
    }
    apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9][^ ]*\).*/\1/p' | head -1
}

add_kernel() { # into $WORK/kernel; its modules into the guest, in the order in which they are loaded
    local root=$WORK/kernel package version module file
    package=$(kernel_package)
    [[ -n $package ]] || { say "linux-image-cloud-amd64 is not in the package lists"; exit 1; }
    fetch "$package" "$root"
    version=$(basename "$root"/boot/vmlinuz-*)
    version=${version#vmlinuz-}
    cp "$root/boot/vmlinuz-$version" "$WORK/vmlinuz"
    depmod -b "$root" "$version" 2>/dev/null
    mkdir -p "$GUEST/lib/modules"
    for module in $(words_of modules.txt); do
        modprobe -d "$root" -S "$version" -D "$module" 2>/dev/null | awk '/^insmod/ { print $2 }' || true
    done | awk '!seen[$0]++' | while read -r file; do
        [[ -f $file ]] || file=$root/$file
        cp "$file" "$GUEST/lib/modules/"
        basename "$file"
    done >"$WORK/order"
    cp "$WORK/order" "$GUEST/lib/modules/order"
}

add_programs() {
    local from=$WORK/packages package program library applet
    for package in $(words_of packages.txt); do fetch "$package" "$from"; done
    mkdir -p "$GUEST"/{bin,lib64,lib/x86_64-linux-gnu,usr,etc/dropbear,dev,proc,sys,run,tmp,mnt,data,root,var}
    cp "$from"/bin/busybox "$from"/sbin/resize2fs "$from"/usr/sbin/dropbear "$from"/usr/bin/dropbearkey "$GUEST/bin/"
    "$from/bin/busybox" --list | while read -r applet; do
        [[ -e $GUEST/bin/$applet ]] || ln -s busybox "$GUEST/bin/$applet"
    done
    ln -s bin "$GUEST/sbin"
    ln -s ../bin "$GUEST/usr/bin"
    ln -s ../bin "$GUEST/usr/sbin"
    ln -s ../lib "$GUEST/usr/lib"
    ln -s ../run "$GUEST/var/run"
    local loader=$from/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2
    cp "$loader" "$GUEST/lib64/"
    for program in resize2fs dropbear dropbearkey; do # the loader itself says which libraries they need
        "$loader" --library-path "$from/lib/x86_64-linux-gnu:$from/usr/lib/x86_64-linux-gnu" \
            --list "$GUEST/bin/$program" | awk '/=> \// { print $3 }'
    done | sort -u | while read -r library; do
        [[ $library == "$from"/* ]] || { say "no package of packages.txt has $library"; exit 1; }
        cp -L "$library" "$GUEST/lib/x86_64-linux-gnu/"
    done
}

add_rootfs() {
    cp -r "$HERE/rootfs/." "$GUEST/"
    find "$GUEST" -type d -exec chmod 755 {} +
    find "$GUEST" -type f -exec chmod 644 {} +
    chmod 755 "$GUEST"/init "$GUEST"/kn/* "$GUEST"/bin/* "$GUEST"/lib64/* "$GUEST"/www/cgi-bin/* "$GUEST"/etc/acpi/PWRF/*
    chmod 600 "$GUEST/etc/shadow"
}

make_initramfs() {
    find "$GUEST" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    (cd "$GUEST" && find . -print0 | sort -z | cpio --null --reproducible --quiet -o -H newc -R 0:0) |
        lz4 -l -9 -q >"$WORK/initrd.img"
}

little_endian() {
    local value=$1 byte
    for byte in 1 2 3 4; do
        printf '%b' "\\x$(printf %02x $((value & 255)))"
        value=$((value >> 8))
    done
}

make_boot_partition() { # make_boot_partition FILE SECTORS
    local file=$1 sectors=$2
    truncate -s $((sectors * 512)) "$file"
    mformat -i "$file" -T "$sectors" -h 255 -s 63 -H 2048 -v KNBOOT -N 4b4e4731 -c 4 ::
    printf 'DEFAULT kn\nPROMPT 0\nLABEL kn\n  KERNEL vmlinuz\n  INITRD initrd.img\n  APPEND %s\n' \
        "$(cat "$WORK/cmdline")" >"$WORK/syslinux.cfg"
    touch -d "@$SOURCE_DATE_EPOCH" "$WORK"/{vmlinuz,initrd.img,syslinux.cfg}
    if [[ $WITH_EFI == 1 ]]; then
        fetch systemd-boot-efi "$WORK/packages"
        printf 'timeout 0\ndefault kn.conf\n' >"$WORK/loader.conf"
        printf 'title kn\nlinux /vmlinuz\ninitrd /initrd.img\noptions %s\n' "$(cat "$WORK/cmdline")" >"$WORK/kn.conf"
        touch -d "@$SOURCE_DATE_EPOCH" "$WORK"/{loader.conf,kn.conf}
        mmd -i "$file" ::EFI ::EFI/BOOT ::loader ::loader/entries
        mcopy -m -i "$file" "$WORK/packages/usr/lib/systemd/boot/efi/systemd-bootx64.efi" ::EFI/BOOT/BOOTX64.EFI
        mcopy -m -i "$file" "$WORK/loader.conf" ::loader/loader.conf
        mcopy -m -i "$file" "$WORK/kn.conf" ::loader/entries/kn.conf
    fi
    mcopy -m -i "$file" "$WORK"/{vmlinuz,initrd.img,syslinux.cfg} ::
    syslinux --install "$file"
}

make_disk() { # MBR, FAT16 partition of syslinux, ext4 partition
    local disk=$WORK/disk.raw boot_at=2048 boot_size=$((BOOT_MB * 2048))
    local data_at=$((boot_at + boot_size)) data_size=$(((DISK_MB - BOOT_MB) * 2048 - boot_at))
    make_boot_partition "$WORK/boot.fat" "$boot_size"
    truncate -s $((data_size * 512)) "$WORK/data.ext4"
    mke2fs -q -t ext4 -b 4096 -O ^has_journal -L kndata -U 4b4e0000-0000-4000-8000-000000000001 -m 0 \
        -E hash_seed=4b4e0000-0000-4000-8000-000000000002,lazy_itable_init=0,resize=8388608 "$WORK/data.ext4"
    {
        head -c 440 /usr/lib/syslinux/mbr/mbr.bin
        printf 'KN01\0\0'
        printf '\x80\xfe\xff\xff\x0e\xfe\xff\xff' && little_endian $boot_at && little_endian $boot_size
        printf '\x00\xfe\xff\xff\x83\xfe\xff\xff' && little_endian $data_at && little_endian $data_size
        head -c 32 /dev/zero
        printf '\x55\xaa'
    } >"$disk"
    [[ $(stat -c %s "$disk") == 512 ]] || { say "the boot sector is $(stat -c %s "$disk") bytes long"; exit 1; }
    truncate -s "${DISK_MB}M" "$disk"
    dd if="$WORK/boot.fat" of="$disk" bs=512 seek=$boot_at conv=notrunc,sparse status=none
    dd if="$WORK/data.ext4" of="$disk" bs=512 seek=$data_at conv=notrunc,sparse status=none
    qemu-img convert -O qcow2 -o compat=1.1 "$disk" "$WORK/kn-guest.qcow2"
}

build() { # build DIRECTORY: everything, in one go
    needs
    WORK=$(mktemp -d)
    trap 'rm -rf "$WORK"' EXIT
    GUEST=$WORK/guest FRESH=$WORK/fresh
    mkdir -p "$GUEST" "$FRESH" "$CACHE/packages"
    echo "$(cat "$HERE/boot/cmdline") ${KERNEL_PARAMETERS:-}" >"$WORK/cmdline"
    say "kernel"
    add_kernel
    say "programs"
    add_programs
    add_rootfs
    say "disk"
    make_initramfs
    make_disk
    mkdir "$WORK/done"
    mv "$WORK"/{kn-guest.qcow2,vmlinuz,initrd.img,cmdline} "$WORK/done/"
    cp -r "$WORK/done" "$1.new.$$" && mv -T "$1.new.$$" "$1"
    say "$(stat -c %s "$1/kn-guest.qcow2") bytes, virtual ${DISK_MB} MiB, sha256 $(sha256sum "$1/kn-guest.qcow2" | cut -c1-16)"
}

copy() { # copy FILE TO: whole or not at all
    local new
    mkdir -p "$(dirname "$2")"
    new=$(mktemp "$(dirname "$2")/.${2##*/}.XXXXXX")
    cp --reflink=auto "$1" "$new"
    chmod 644 "$new"
    mv -f "$new" "$2"
}

mkdir -p "$CACHE"
inputs=$(cd "$HERE" && find . -type f -print0 | sort -z | xargs -0 sha256sum)
hash=$(echo "$inputs $WITH_EFI $DISK_MB $BOOT_MB ${KERNEL_PARAMETERS:-}" | sha256sum | cut -c1-16)
built=$CACHE/kn-guest-$hash
if [[ ! -d $built ]]; then
    exec 9>"$CACHE/lock"
    flock 9 # one builds, the others take it
    [[ -d $built ]] || (build "$built")
    exec 9>&-
fi
copy "$built/kn-guest.qcow2" "$1"
[[ -z ${2:-} ]] || for file in vmlinuz initrd.img cmdline; do copy "$built/$file" "$2/$file"; done
