# Signs each webhook_*.json here: sh webhook_signatures.sh >webhook_signatures.txt
# A line: the file, the timestamp, the secret, and the HMAC-SHA256 of "{timestamp}." and the file's bytes.
cd "$(dirname "$0")" || exit
for secret in whsec_c2FtcGxlLXNlY3JldA whsec_naïve; do
    for file in webhook_*.json; do
        for timestamp in 1736942400 0; do
            printf '%s %s %s ' "$file" "$timestamp" "$secret"
            { printf '%s.' "$timestamp" && cat "$file"; } | openssl dgst -sha256 -hmac "$secret" -r | cut -d ' ' -f 1
        done
    done
done
